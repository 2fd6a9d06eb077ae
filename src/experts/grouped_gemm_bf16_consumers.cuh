// The bf16 grouped GEMM's consumers: products and epilogues.
#pragma once

#include "common/wgmma_bf16_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_bf16_tasks.cuh"
#include "experts/store_rows.cuh"

namespace layered_sglang::grouped_gemm {

// Stores a task's result. Of a warpgroup's 128 weight rows, sums[0] has the gate rows and sums[1]
// the up rows of the same 64 neurons; in the down GEMM, sums[0] has the even 8-row groups and
// sums[1] the odd ones, so a warp holds 32 adjacent rows.
template <bool kGateUp, int kColumns>
__device__ __forceinline__ void store_tile(const KernelArgs& args, const Task& task,
                                           const float (&sums)[2][kColumns / 2], int group,
                                           uint32_t transpose) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int matrix = lane / 8;
  if constexpr (kGateUp) {
    // 16 neurons of 16 rows: 32 bytes a row. Two such blocks at a time while there are registers.
    constexpr int kBlocks = kColumns > 160 ? 1 : 2;
    const int store_row = matrix / 2 * 8 + lane % 8;
    const uint32_t write_at =
        transpose + store_row * 32 + (((matrix % 2) ^ (store_row / 4 % 2)) << 4);
    const int row = lane / 2;
    const int chunk = lane % 2;
    const uint32_t read_at = transpose + row * 32 + ((chunk ^ (row / 4 % 2)) << 4);
    const int column = (task.weight_tile * kTileWeightRows + group * kTileWeightRows / 2) / 2 +
                       warp * 16 + chunk * 8;
    __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row) * args.out_columns + column;
    const Activation activation = args.gemm.activation;
#pragma unroll
    for (int first = 0; first < kColumns; first += 16 * kBlocks) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        uint32_t packed[2][2] = {};  // [8 rows of the 16][8 neurons of the 16]
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column_block = first / 8 + 2 * j + half;
          if (column_block * 8 >= kColumns) continue;
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const float* gate = &sums[0][4 * column_block + 2 * b];
            const float* up = &sums[1][4 * column_block + 2 * b];
            packed[half][b] = ptx::pack_bf16(activate(gate[0], up[0], activation),
                                             activate(gate[1], up[1], activation));
          }
        }
        if (first + 16 * j < kColumns) {
          ptx::store_matrices_transposed(write_at + j * kTransposeBytes, packed[0][0], packed[0][1],
                                         packed[1][0], packed[1][1]);
        }
      }
      __syncwarp();
      uint4 value[kBlocks];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j)
        value[j] = ptx::load_shared_16(read_at + j * kTransposeBytes);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
        const int tile_row = first + 16 * j + row;
        if (tile_row < task.rows && column < args.out_columns) {
          *reinterpret_cast<uint4*>(out + static_cast<size_t>(tile_row) * args.out_columns) =
              value[j];
        }
      }
    }
  } else {
    const int column = task.weight_tile * kTileWeightRows + group * kTileWeightRows / 2 + warp * 32;
    store_warp_rows<kTransposeBytes, kColumns>(args, task, column, sums, transpose);
  }
}

template <int kCluster>
__device__ __forceinline__ void release(const SharedLayout& shared, int stage) {
  const int lane = threadIdx.x % kWarpSize;
  if (lane < kCluster) {
    if constexpr (kCluster == 1) {
      ptx::barrier_arrive(shared.empty_barrier(stage));
    } else {
      // NOTE: the other block's copy engine writes into this block's stage, so both must know.
      ptx::barrier_arrive_remote(shared.empty_barrier(stage), lane);
    }
  }
}

// A warp's part of a task of `expert` is stored.
__device__ __forceinline__ void count_stored_part(const KernelArgs& args, int expert) {
  ptx::fence_async_proxy_global();
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ptx::add_release(args.gemm.stored_parts + expert, 1);
}

// A warpgroup's share of one task: 128 weight rows.
template <bool kGateUp, int kCluster, int kColumns>
__device__ __forceinline__ void compute_task(const KernelArgs& args, const SharedLayout& shared,
                                             const Task& task, int group, RingPosition& position) {
  // NOTE: cleared, and not left to the first wgmma: without a definition the registers would count
  // as live all the way from the kernel's start, in every case of the switch at once.
  float sums[2][kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  // In units of 16 bytes, as descriptors hold them.
  const uint32_t first_weights = (shared.weights(0) + group * kHalfWeightBytes) / 16;
  const uint32_t first_tokens = shared.tokens(0) / 16;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    ptx::barrier_wait(shared.full_barrier(position.stage), position.round);
    // NOTE: the gather's writes are ordinary ones to wgmma, and the barrier alone does not order
    // those.
    if (kGateUp) ptx::fence_async_proxy();
    const uint32_t weights = first_weights + position.stage * (kStageBytes / 16);
    const uint32_t tokens = weights + first_tokens - first_weights;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStageDepth / 16; ++k) {
      const uint64_t b = ptx::operand_descriptor<kRowBytes, kGroupBytes>(tokens + k * 2);
#pragma unroll
      for (int parity = 0; parity < 2; ++parity) {
        // See store_tile: which of the 128 rows are whose.
        constexpr int kGroupStride = kGateUp ? kGroupBytes : 2 * kGroupBytes;
        constexpr int kSecond = (kGateUp ? kHalfWeightBytes / 2 : kGroupBytes) / 16;
        wgmma_bf16<kColumns>(
            sums[parity],
            ptx::operand_descriptor<kRowBytes, kGroupStride>(weights + parity * kSecond + k * 2),
            b);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (k_block > 0) release<kCluster>(shared, position.before(args.stages));
    position.advance(args.stages);
  }
  ptx::wgmma_wait<0>();
  const int last = position.before(args.stages);
  // The last stage's weights, which this warpgroup alone reads, have served: the epilogue takes
  // their place. So the stage is released after it.
  ptx::named_barrier_sync(1 + group, 128);
  const int warp = threadIdx.x / kWarpSize % 4;
  store_tile<kGateUp, kColumns>(
      args, task, sums, group,
      shared.weights(last) + group * kHalfWeightBytes + warp * kWarpWeightBytes);
  ptx::fence_async_proxy();
  __syncwarp();
  release<kCluster>(shared, last);
  if (kGateUp) count_stored_part(args, task.expert);
}

template <bool kGateUp, int kCluster>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const SharedLayout& shared,
                                              const ExpertTable& table) {
  const int group = threadIdx.x / 128 - 1;
  // The second warpgroup starts late and stays behind: while one is in its epilogue the other keeps
  // the tensor cores busy.
  const int lag = min(args.tuning.consumer_lag, args.stages - 1);
  if (group == 1 && first_task<kCluster>() < task_count(table, args) && lag > 0 &&
      args.depth > lag * kStageDepth) {
    ptx::barrier_wait(shared.full_barrier(lag), 0);
  }
  RingPosition position;
  for (int index = first_task<kCluster>(); index < task_count(table, args);
       index += task_step<kCluster>()) {
    const Task task = find_task<kCluster>(table, args, index);
#define LS_CASE(columns)                                                           \
  case columns / 8:                                                                \
    compute_task<kGateUp, kCluster, columns>(args, shared, task, group, position); \
    break;
    switch (task.width / 8) {
      LS_CASE(16)
      LS_CASE(32)
      LS_CASE(48)
      LS_CASE(64)
      LS_CASE(72)
      LS_CASE(80)
      LS_CASE(88)
      LS_CASE(96)
      LS_CASE(104)
      LS_CASE(112)
      LS_CASE(120)
      LS_CASE(128)
      LS_CASE(136)
      LS_CASE(144)
      LS_CASE(152)
      LS_CASE(160)
#if LAYERED_SGLANG_MAX_TILE_TOKENS > 160
      LS_CASE(168)
      LS_CASE(176)
      LS_CASE(184)
      LS_CASE(192)
#endif
    }
#undef LS_CASE
  }
}

}  // namespace layered_sglang::grouped_gemm
