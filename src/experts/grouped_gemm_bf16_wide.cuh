// The wide tasks of the bf16 grouped GEMM: tokens are wgmma's M, 64 rows a warpgroup, and the
// weight rows of the task its N. For many rows an expert: shared memory is read less for a product,
// and a lane's sums of a row are adjacent outputs. But rows come in units of 64.
#pragma once

#include "common/wgmma_bf16_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_bf16_tasks.cuh"

namespace layered_sglang::grouped_gemm {

using WideSums = float[kWideWeightRows / 2];
inline constexpr int kWideBlocks = kWideWeightRows / 8;  // of 8 columns

// Two adjacent outputs of the warp's row 8 * half + lane / 4, of a block of 8 outputs. The gate
// sums come first, then the up sums.
template <bool kGateUp>
__device__ __forceinline__ uint32_t wide_pair(const WideSums& sums, int block, int half,
                                              Activation activation) {
  const float* values = &sums[4 * block + 2 * half];
  if constexpr (!kGateUp) return ptx::pack_bf16(values[0], values[1]);
  const float* up = values + 4 * (kWideBlocks / 2);
  return ptx::pack_bf16(activate(values[0], up[0], activation),
                        activate(values[1], up[1], activation));
}

// Four adjacent lanes have a quarter each of four 16-byte chunks; lane q gets all of chunk q.
__device__ __forceinline__ uint4 gather_chunk(const uint32_t (&quarter)[4]) {
  const bool odd = threadIdx.x & 1;
  const bool high = threadIdx.x & 2;
  uint32_t low_pair[2];   // of the chunk 0 or, in odd lanes, 1: the quarters of this lane and its
  uint32_t high_pair[2];  // neighbour; of the chunk 2 or 3
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t own = odd ? quarter[2 * i + 1] : quarter[2 * i];
    const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? quarter[2 * i] : quarter[2 * i + 1], 1);
    (i == 0 ? low_pair : high_pair)[0] = odd ? other : own;
    (i == 0 ? low_pair : high_pair)[1] = odd ? own : other;
  }
  uint32_t other[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    other[i] = __shfl_xor_sync(kAllLanes, high ? low_pair[i] : high_pair[i], 2);
  }
  return high ? make_uint4(other[0], other[1], high_pair[0], high_pair[1])
              : make_uint4(low_pair[0], low_pair[1], other[0], other[1]);
}

// Stores a warp's 16 rows from the row tile_row of the task. Four lanes store 64 adjacent bytes of
// a row: whole sectors, straight from registers, as the ring takes all of the shared memory.
template <bool kGateUp>
__device__ __forceinline__ void store_wide_tile(const KernelArgs& args, const Task& task,
                                                const WideSums& sums, int tile_row) {
  constexpr int kBlocks = kWideBlocks / (kGateUp ? 2 : 1);
  static_assert(kBlocks % 4 == 0, "lanes share four blocks");
  const int lane = threadIdx.x % kWarpSize;
  const int row = tile_row + lane / 4;
  const int first_column = (task.weight_tile * kBlocks + lane % 4) * 8;
  __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row + row) * args.out_columns;
#pragma unroll
  for (int block = 0; block < kBlocks; block += 4) {
    const int column = first_column + block * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t quarter[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        quarter[i] = wide_pair<kGateUp>(sums, block + i, half, args.gemm.activation);
      }
      const uint4 chunk = gather_chunk(quarter);
      if (row + 8 * half < task.rows && column < args.out_columns) {
        *reinterpret_cast<uint4*>(out + static_cast<size_t>(8 * half) * args.out_columns + column) =
            chunk;
      }
    }
  }
}

// A warpgroup's share of one wide task: 64 rows. stored_expert: see run_consumers.
template <bool kGateUp, int kCluster>
__device__ __forceinline__ void compute_wide_task(const KernelArgs& args,
                                                  const SharedLayout<true>& shared,
                                                  const Task& task, int group, int& stored_expert,
                                                  RingPosition& position) {
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  if (task.rows <= group * kWideGroupTokens) {  // a tile that ends before this warpgroup's rows
    if (kGateUp) count_stored_part(args, stored_expert);
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      ptx::barrier_wait(shared.full_barrier(position.stage), position.round);
      __syncwarp();
      release<kCluster>(shared, position.stage);
      position.advance(args.stages);
    }
  } else {
    WideSums sums;
#pragma unroll
    for (float& sum : sums) sum = 0.0f;
    // In units of 16 bytes, as descriptors hold them.
    const uint32_t first_weights = shared.weights(0) / 16;
    const uint32_t to_tokens =
        (kWeightBytes<true> + group * kWideGroupTokens * kRowBytes) / 16;  // from a stage's weights
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      ptx::barrier_wait(shared.full_barrier(position.stage), position.round);
      // NOTE: the gather's writes are ordinary ones to wgmma, and the barrier alone does not order
      // those.
      if (kGateUp) ptx::fence_async_proxy();
      const uint32_t weights = first_weights + position.stage * (kStageBytes<true> / 16);
      ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStageDepth / 16; ++k) {
        wgmma_bf16<kWideWeightRows>(
            sums, ptx::operand_descriptor<kRowBytes, kGroupBytes>(weights + to_tokens + k * 2),
            ptx::operand_descriptor<kRowBytes, kGroupBytes>(weights + k * 2));
      }
      ptx::wgmma_commit();
      if (kGateUp && k_block == 0) count_stored_part(args, stored_expert);
      ptx::wgmma_wait<1>();
      if (k_block > 0) release<kCluster>(shared, position.before(args.stages));
      position.advance(args.stages);
    }
    ptx::wgmma_wait<0>();
    release<kCluster>(shared, position.before(args.stages));
    const int warp = threadIdx.x / kWarpSize % 4;
    store_wide_tile<kGateUp>(args, task, sums, group * kWideGroupTokens + warp * 16);
  }
  stored_expert = task.expert;
}

}  // namespace layered_sglang::grouped_gemm
