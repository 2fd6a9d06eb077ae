// The epilogue of an MXFP4 grouped GEMM: a warp's sums of one row block, turned so that each lane
// stores 16 bytes of one row.
#pragma once

#include "experts/mxfp4_tasks.cuh"

namespace layered_sglang::grouped_gemm_mxfp4 {

__device__ __forceinline__ float activate(float gate, float up, const Mxfp4Activation& activation) {
  if (activation.bilinear) return gate * up;
  gate = fminf(gate, activation.limit);
  up = fminf(fmaxf(up, -activation.limit), activation.limit);
  return __fdividef(gate, 1.0f + __expf(-activation.alpha * gate)) * (up + 1.0f);
}

// The bias of a thread's two rows of a block, h = 0 and 1; `block` may be beyond the last.
template <bool kGateUp>
__device__ __forceinline__ float2 load_bias(const KernelArgs& args, int expert, int block, int warp,
                                            int lane) {
  const float* bias = args.weights.bias + static_cast<size_t>(expert) * args.bias_rows;
  const int row = kMxfp4BlockRows * block + 16 * warp + (kGateUp ? 2 : 1) * (lane / 4);
  const int second = row + (kGateUp ? 1 : 8);
  return {row < args.bias_rows ? __ldg(bias + row) : 0.0f,
          second < args.bias_rows ? __ldg(bias + second) : 0.0f};
}

__device__ __forceinline__ void store_row(const KernelArgs& args, const Task& task, int row,
                                          int column, const uint4& value) {
  if (row >= task.rows || column >= args.out_columns) return;
  __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row + row) * args.out_columns;
  *reinterpret_cast<uint4*>(out + column) = value;
}

// sums: [4 * j + 2 * h + i] of lane l has column 8 * j + 2 * (l % 4) + i (a row of `out`), and of
// the block's rows 16 * warp + 8 * h + l / 4: in a gate/up block h = 0 is a neuron's gate and 1 its
// up, so a warp has 8 neurons; in the down GEMM 16 adjacent outputs.
template <bool kGateUp, int kColumns>
__device__ __forceinline__ void store_block(const KernelArgs& args, const Task& task,
                                            const float (&sums)[kColumns / 2], int block, int warp,
                                            uint32_t transpose) {
  const int lane = threadIdx.x % kWarpSize;
  if constexpr (kGateUp) {
    const int column = kMxfp4BlockRows / 2 * block + 8 * warp;
#pragma unroll
    for (int first = 0; first < kColumns; first += 32) {
      uint32_t packed[4] = {};  // 8 rows each
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        if (first + 8 * m >= kColumns) continue;
        const float* pair = &sums[first / 2 + 4 * m];
        packed[m] = ptx::pack_bf16(activate(pair[0], pair[2], args.gemm.activation),
                                   activate(pair[1], pair[3], args.gemm.activation));
      }
      ptx::store_matrices_transposed(transpose + lane * 16, packed[0], packed[1], packed[2],
                                     packed[3]);
      __syncwarp();
      const uint4 value = ptx::load_shared_16(transpose + lane * 16);
      __syncwarp();
      store_row(args, task, first + lane, column, value);
    }
  } else {
    // 16 rows of 32 bytes. Matrix 2 * j + h has rows 8 * j ... and outputs 8 * h ...
    const int store_row_of = lane / 16 * 8 + lane % 8;
    const uint32_t write_at =
        transpose + store_row_of * 32 + (((lane / 8 % 2) ^ (store_row_of / 4 % 2)) << 4);
    const int row = lane / 2;
    const int chunk = lane % 2;
    const uint32_t read_at = transpose + row * 32 + ((chunk ^ (row / 4 % 2)) << 4);
    const int column = kMxfp4BlockRows * block + 16 * warp + 8 * chunk;
#pragma unroll
    for (int first = 0; first < kColumns; first += 16) {
      const float* left = &sums[first / 2];
      const float* right = &sums[first / 2 + 4];
      ptx::store_matrices_transposed(
          write_at, ptx::pack_bf16(left[0], left[1]), ptx::pack_bf16(left[2], left[3]),
          ptx::pack_bf16(right[0], right[1]), ptx::pack_bf16(right[2], right[3]));
      __syncwarp();
      const uint4 value = ptx::load_shared_16(read_at);
      __syncwarp();
      store_row(args, task, first + row, column, value);
    }
  }
}

}  // namespace layered_sglang::grouped_gemm_mxfp4
