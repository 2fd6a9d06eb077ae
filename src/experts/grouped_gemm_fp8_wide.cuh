// The wide tasks of the fp8 grouped GEMM: tokens are wgmma's M, so a thread's sums are of two rows
// and their scales are two numbers, not one for each column as in the narrow ones.
//
// A warpgroup has 64 rows and all 256 weight rows of the task, in two halves as they were copied:
// of w13 the gate and then the up rows of 64 neurons, of w2 128 adjacent rows.
#pragma once

#include "common/e4m3_quantise.cuh"
#include "common/wgmma_e4m3_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_fp8_tasks.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

inline constexpr int kWideRows = 64;       // of a warpgroup
inline constexpr int kHalfColumns = 128;   // of a half; wgmma's N
inline constexpr int kWideRowBytes = 144;  // of 16 rows' scratch in a warp: 128, padded
static_assert(kConsumerWarps * 16 * kWideRowBytes <= kEpilogueBytes, "the wide tasks' scratch");

using WideSums = float[2][kHalfColumns / 2];

// products = the rows times half `half` of the weights, over one block of K.
__device__ __forceinline__ void multiply_wide(float (&products)[kHalfColumns / 2],
                                              const SharedLayout& shared, int stage, int group,
                                              int half) {
  // In units of 16 bytes, as descriptors hold them.
  const uint32_t rows = (shared.tokens(stage) + group * kWideRows * kRowBytes) / 16;
  const uint32_t weights = (shared.weights(stage) + half * kHalfWeightBytes) / 16;
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kStageDepth / 32; ++k) {
    const uint64_t a = ptx::operand_descriptor<kRowBytes, kGroupBytes>(rows + k * 2);
    const uint64_t b = ptx::operand_descriptor<kRowBytes, kGroupBytes>(weights + k * 2);
    if (k == 0) {
      wgmma_e4m3<kHalfColumns, false>(products, a, b);
    } else {
      wgmma_e4m3<kHalfColumns, true>(products, a, b);
    }
  }
  ptx::wgmma_commit();
}

// Adds them to the sums. first, second: the scales of the weights of the first and of the last 64
// columns.
__device__ __forceinline__ void add_wide(float (&sums)[kHalfColumns / 2],
                                         const float (&products)[kHalfColumns / 2],
                                         const float (&row_scales)[2], float first, float second) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const float weight_scale = part == 0 ? first : second;
    const float scales[2] = {row_scales[0] * weight_scale, row_scales[1] * weight_scale};
#pragma unroll
    for (int i = 0; i < kHalfColumns / 4; ++i) {
      const int at = part * kHalfColumns / 4 + i;
      sums[at] = fmaf(products[at], scales[i / 2 % 2], sums[at]);
    }
  }
}

// Stores 16 rows of a warp's scratch, 128 bytes each, to rows of `stride` bytes.
__device__ __forceinline__ void store_wide_rows(uint32_t scratch, uint8_t* out, int64_t stride,
                                                int rows) {
  const int lane = threadIdx.x % kWarpSize;
  const int chunk = lane % 8;
  __syncwarp();
#pragma unroll
  for (int first = 0; first < 16; first += 4) {
    const int row = first + lane / 8;
    const uint4 value = ptx::load_shared_16(scratch + row * kWideRowBytes + chunk * 16);
    if (row < rows) *reinterpret_cast<uint4*>(out + row * stride + chunk * 16) = value;
  }
  __syncwarp();
}

// The neurons' sums become neurons, are quantised and stored. A row's 128 neurons are in four
// lanes.
__device__ __forceinline__ void store_wide_neurons(const KernelArgs& args, const Task& task,
                                                   WideSums& sums, uint32_t scratch, int first_row,
                                                   int rows) {
  const int lane = threadIdx.x % kWarpSize;
  const Activation activation = args.gemm.activation;
  float largest[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHalfColumns / 4; ++i) {
      const float neuron = activate(sums[half][i], sums[half][kHalfColumns / 4 + i], activation);
      sums[half][i] = neuron;
      largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], fabsf(neuron));
    }
  }
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    largest[h] = fmaxf(largest[h], __shfl_xor_sync(kAllLanes, largest[h], 1));
    largest[h] = fmaxf(largest[h], __shfl_xor_sync(kAllLanes, largest[h], 2));
    const GroupScale scale = group_scale(largest[h]);
    inverse[h] = scale.inverse;
    const int row = lane / 4 + 8 * h;
    if (lane % 4 == 0 && row < rows) {
      args.token_scale[task.weight_tile * args.token_scale_stride + first_row + row] = scale.scale;
    }
  }
  const uint32_t write_at = scratch + lane / 4 * kWideRowBytes + lane % 4 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHalfColumns / 4; i += 2) {
      const int h = i / 2 % 2;
      const uint32_t pair = to_e4m3(sums[half][i] * inverse[h], sums[half][i + 1] * inverse[h]);
      ptx::store_shared_2(write_at + h * 8 * kWideRowBytes + half * 64 + i / 4 * 8, pair);
    }
  }
  uint8_t* out = args.neurons + static_cast<int64_t>(first_row) * args.out_columns +
                 task.weight_tile * kFp8Block;
  store_wide_rows(scratch, out, args.out_columns, rows);
}

// 64 columns at a time.
__device__ __forceinline__ void store_wide_outputs(const KernelArgs& args, const Task& task,
                                                   const WideSums& sums, uint32_t scratch,
                                                   int first_row, int rows) {
  const int lane = threadIdx.x % kWarpSize;
  const uint32_t write_at = scratch + lane / 4 * kWideRowBytes + lane % 4 * 4;
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const int column = task.weight_tile * kTileWeightRows + part * 64;
    if (column >= args.out_columns) break;
    const float* values = &sums[part / 2][part % 2 * kHalfColumns / 4];
#pragma unroll
    for (int i = 0; i < kHalfColumns / 4; i += 2) {
      ptx::store_shared_4(write_at + i / 2 % 2 * 8 * kWideRowBytes + i / 4 * 16,
                          __uint_as_float(ptx::pack_bf16(values[i], values[i + 1])));
    }
    __nv_bfloat16* out = args.out + static_cast<int64_t>(first_row) * args.out_columns + column;
    store_wide_rows(scratch, reinterpret_cast<uint8_t*>(out),
                    static_cast<int64_t>(args.out_columns) * 2, rows);
  }
}

template <bool kGateUp>
__device__ __forceinline__ void compute_wide_task(const KernelArgs& args,
                                                  const SharedLayout& shared, const Task& task,
                                                  int group, RingPosition& position) {
  if (task.rows <= group * kWideRows) {  // the second warpgroup of a tile that ends before it
    for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
      wait_full<kGateUp>(shared, position);
      release(shared, position.stage);
      position.advance(kStages);
    }
    return;
  }
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int tile_row = group * kWideRows + warp * 16;  // the warp's first
  WideSums sums;
#pragma unroll
  for (int i = 0; i < kHalfColumns / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
  float products[kHalfColumns / 2];
  for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
    wait_full<kGateUp>(shared, position);
    const int stage = position.stage;
    multiply_wide(products, shared, stage, group, 0);
    const uint32_t row_scale_at = shared.token_scales(stage) + (tile_row + lane / 4) * 4;
    const float row_scales[2] = {ptx::load_shared_4(row_scale_at),
                                 ptx::load_shared_4(row_scale_at + 32)};
    const float scale_0 = ptx::load_shared_4(shared.weight_scales(stage));
    const float scale_1 = ptx::load_shared_4(shared.weight_scales(stage) + 4);
    ptx::wgmma_wait<0>();
    add_wide(sums[0], products, row_scales, scale_0, kGateUp ? scale_1 : scale_0);
    multiply_wide(products, shared, stage, group, 1);
    ptx::wgmma_wait<0>();
    release(shared, stage);
    add_wide(sums[1], products, row_scales, kGateUp ? scale_0 : scale_1, scale_1);
    position.advance(kStages);
  }
  const uint32_t scratch = shared.epilogue() + (4 * group + warp) * 16 * kWideRowBytes;
  const int first_row = task.first_row + tile_row;
  const int rows = task.rows - tile_row;  // 0 or less: none of this warp's
  if constexpr (kGateUp) {
    store_wide_neurons(args, task, sums, scratch, first_row, rows);
  } else {
    store_wide_outputs(args, task, sums, scratch, first_row, rows);
  }
}

}  // namespace layered_sglang::grouped_gemm_fp8
