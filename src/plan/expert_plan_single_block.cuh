// The plan of few pairs in one launch of one block.
#pragma once

#include "plan/expert_rank.cuh"

namespace layered_sglang {

inline constexpr int kSingleBlockMaxThreads = 1024;
inline constexpr int kSingleBlockMaxItems = 4;
inline constexpr int kSingleBlockMaxPairs = kSingleBlockMaxThreads * kSingleBlockMaxItems;

// Warp w owns the pairs [w * 32 * kItems, (w + 1) * 32 * kItems).
// Dynamic shared memory: rows [row_capacity], base [E] and warp_totals [32] int32, then warp_counts
// [num_warps, E] uint16, rounded up to 4 bytes.
template <int kItems>
__global__ void __launch_bounds__(kSingleBlockMaxThreads, 1)
    expert_plan_single_block(ExpertPlanArgs args, int num_warps) {
  cudaTriggerProgrammaticLaunchCompletion();
  extern __shared__ int32_t shared[];
  int32_t* rows = shared;
  int32_t* base = rows + args.row_capacity;
  int32_t* warp_totals = base + args.num_experts;
  uint32_t* warp_count_pairs = reinterpret_cast<uint32_t*>(warp_totals + kWarpSize);
  uint16_t* warp_counts = reinterpret_cast<uint16_t*>(warp_count_pairs);

  const int thread = threadIdx.x;
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int first_pair = warp * kWarpSize * kItems + lane;

  // Load first, so that clearing shared memory hides the latency.
  int expert[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    expert[i] = load_expert(args, first_pair + i * kWarpSize, args.num_pairs);
  }
  for (int row = thread; row < args.row_capacity; row += blockDim.x) rows[row] = -1;
  const int num_count_pairs = (num_warps * args.num_experts + 1) / 2;
  for (int i = thread; i < num_count_pairs; i += blockDim.x) warp_count_pairs[i] = 0;
  __syncthreads();

  int rank[kItems];
  if (warp < num_warps) {
    rank_in_warp<kItems>(expert, args.num_experts, warp_counts + warp * args.num_experts, rank);
  }
  __syncthreads();

  // Thread e places expert e.
  const int count = scan_over_warps(warp_counts, num_warps, args.num_experts);
  int total_rows;
  const int offset =
      block_exclusive_scan(round_up_rows(count, args.row_alignment), warp_totals, &total_rows);
  if (thread < args.num_experts) {
    base[thread] = offset;
    args.expert_offsets[thread] = offset;
    args.expert_counts[thread] = count;
    if (args.cleared_counts != nullptr) args.cleared_counts[thread] = 0;
  }
  if (thread == 0) args.expert_offsets[args.num_experts] = total_rows;
  __syncthreads();

  // Scatter within shared memory, so that the rows leave in order and padded.
  if (warp < num_warps) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int pair = first_pair + i * kWarpSize;
      int row = -1;
      if (expert[i] < args.num_experts) {
        row = base[expert[i]] + warp_counts[warp * args.num_experts + expert[i]] + rank[i];
        rows[row] = pair;
      }
      if (pair < args.num_pairs) args.inverse_rows[pair] = row;
    }
  }
  __syncthreads();
  for (int row = thread; row < args.row_capacity; row += blockDim.x) {
    args.sorted_rows[row] = rows[row];
  }
}

}  // namespace layered_sglang
