// The plan of many pairs in two launches: a histogram per block, then the placement.
//
// Block b owns the pairs [b * pairs_per_block, (b + 1) * pairs_per_block) in both. The second
// kernel starts while the first still runs and ranks its first tile meanwhile; only the base rows
// need the other blocks' histograms. No block ever waits for another block of its own launch, so
// neither needs all blocks resident at once.
#pragma once

#include "plan/expert_rank.cuh"

namespace layered_sglang {

inline constexpr int kMultiBlockThreads = 512;
inline constexpr int kMultiBlockWarps = kMultiBlockThreads / kWarpSize;
// Pairs of a thread in a tile: few while the tiles fit kMultiBlockMaxBlocks, more beyond that.
inline constexpr int kMultiBlockFewItems = 2;
inline constexpr int kMultiBlockManyItems = 4;
// The placement reads blocks * E counts in every block, which grows with the square of the blocks:
// 131072 pairs of 128 experts take 9.5 us in 64 blocks on an H200, and took 16.2 us in 128.
inline constexpr int kMultiBlockMaxBlocks = 64;

static_assert(kMultiBlockThreads >= kMaxPlanExperts, "thread e places expert e");

// block_counts [blocks, E]: pairs of each expert in each block.
__global__ void __launch_bounds__(kMultiBlockThreads)
    expert_plan_histogram(ExpertPlanArgs args, int pairs_per_block, int32_t* block_counts) {
  cudaTriggerProgrammaticLaunchCompletion();
  __shared__ int histogram[kMaxPlanExperts];
  for (int e = threadIdx.x; e < args.num_experts; e += kMultiBlockThreads) histogram[e] = 0;
  __syncthreads();

  const int begin = blockIdx.x * pairs_per_block;
  const int end = min(begin + pairs_per_block, args.num_pairs);
#pragma unroll 2
  for (int pair = begin + threadIdx.x; pair < end; pair += kMultiBlockThreads) {
    const int expert = load_expert(args, pair, end);
    if (expert < args.num_experts) atomicAdd(&histogram[expert], 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < args.num_experts; e += kMultiBlockThreads) {
    if (blockIdx.x == 0 && args.cleared_counts != nullptr) args.cleared_counts[e] = 0;
    block_counts[blockIdx.x * args.num_experts + e] = histogram[e];
  }
}

// Each expert's count over all blocks and over the blocks before this one, into shared [E] each
// (zeroed). Several threads share an expert's column when there are fewer experts than threads.
__device__ __forceinline__ void sum_block_counts(const int32_t* block_counts, int num_experts,
                                                 int* all, int* earlier) {
  const int columns = (num_experts + kWarpSize - 1) / kWarpSize * kWarpSize;
  const int groups = kMultiBlockThreads / columns;
  const int column = threadIdx.x % columns;
  const int group = threadIdx.x / columns;
  if (column >= num_experts || group >= groups) return;

  int sum_all = 0;
  int sum_earlier = 0;
#pragma unroll 16
  for (int block = group; block < gridDim.x; block += groups) {
    // NOTE: written by a kernel that may still have been running when this one started, so never
    // through the read-only cache.
    const int count = __ldcg(block_counts + block * num_experts + column);
    sum_all += count;
    sum_earlier += block < blockIdx.x ? count : 0;
  }
  atomicAdd(&all[column], sum_all);
  atomicAdd(&earlier[column], sum_earlier);
}

// Marks the rows that hold no pair: behind each expert's last row, and behind the last expert.
__device__ __forceinline__ void fill_padding(const ExpertPlanArgs& args, int offset, int count,
                                             int total_rows) {
  if (threadIdx.x < args.num_experts && threadIdx.x % gridDim.x == blockIdx.x) {
    const int end = offset + round_up_rows(count, args.row_alignment);
    for (int row = offset + count; row < end; ++row) args.sorted_rows[row] = -1;
  }
  const int stride = gridDim.x * kMultiBlockThreads;
  for (int row = total_rows + blockIdx.x * kMultiBlockThreads + threadIdx.x;
       row < args.row_capacity; row += stride) {
    args.sorted_rows[row] = -1;
  }
}

// Warp w of a tile owns its pairs [w * 32 * kItems, (w + 1) * 32 * kItems).
template <int kItems>
__global__ void __launch_bounds__(kMultiBlockThreads)
    expert_plan_place(ExpertPlanArgs args, int pairs_per_block, const int32_t* block_counts) {
  cudaTriggerProgrammaticLaunchCompletion();
  __shared__ uint16_t warp_counts[kMultiBlockWarps * kMaxPlanExperts];
  __shared__ int base[kMaxPlanExperts];     // the next row of each expert for this block
  __shared__ int all[kMaxPlanExperts];      // pairs of each expert in all blocks
  __shared__ int earlier[kMaxPlanExperts];  // pairs of each expert in the blocks before this one
  __shared__ int warp_totals[kWarpSize];

  const int thread = threadIdx.x;
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int num_experts = args.num_experts;
  uint16_t* my_warp_counts = warp_counts + warp * num_experts;
  if (thread < num_experts) all[thread] = earlier[thread] = 0;

  const int begin = blockIdx.x * pairs_per_block;
  const int end = min(begin + pairs_per_block, args.num_pairs);
  int tile = begin;
  do {
    const int first_pair = tile + warp * kWarpSize * kItems + lane;
    int expert[kItems];
    int rank[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      expert[i] = load_expert(args, first_pair + i * kWarpSize, end);
    }
    for (int e = lane; e < num_experts; e += kWarpSize) my_warp_counts[e] = 0;
    __syncwarp();
    rank_in_warp<kItems>(expert, num_experts, my_warp_counts, rank);
    __syncthreads();
    const int tile_count = scan_over_warps(warp_counts, kMultiBlockWarps, num_experts);

    if (tile == begin) {
      // NOTE: everything above reads only topk_ids, which was complete before the histogram
      // kernel started; block_counts is complete, and outputs may be written, from here on.
      cudaGridDependencySynchronize();
      sum_block_counts(block_counts, num_experts, all, earlier);
      __syncthreads();
      const int count = thread < num_experts ? all[thread] : 0;
      int total_rows;
      const int offset =
          block_exclusive_scan(round_up_rows(count, args.row_alignment), warp_totals, &total_rows);
      if (thread < num_experts) base[thread] = offset + earlier[thread];
      if (blockIdx.x == 0) {
        if (thread < num_experts) {
          args.expert_offsets[thread] = offset;
          args.expert_counts[thread] = count;
        }
        if (thread == 0) args.expert_offsets[num_experts] = total_rows;
      }
      fill_padding(args, offset, count, total_rows);
    }
    __syncthreads();

#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int pair = first_pair + i * kWarpSize;
      int row = -1;
      if (expert[i] < num_experts) {
        row = base[expert[i]] + my_warp_counts[expert[i]] + rank[i];
        args.sorted_rows[row] = pair;
      }
      if (pair < end) args.inverse_rows[pair] = row;
    }

    tile += kMultiBlockThreads * kItems;
    if (tile < end) {
      __syncthreads();  // base is read above
      if (thread < num_experts) base[thread] += tile_count;
    }
  } while (tile < end);
}

}  // namespace layered_sglang
