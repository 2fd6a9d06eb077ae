// How the bf16 and the fp8 down GEMM store their rows.
#pragma once

#include <cuda_bf16.h>

#include "common/sm90_ptx.cuh"
#include "experts/task_walk.cuh"

namespace layered_sglang {

// Stores a warp's 32 adjacent outputs, from `first_column` on, of a task's rows: sums[0] has the
// first and third 8 of them and sums[1] the others, so that whole sectors are stored. An 8x8 block
// is turned by stmatrix, so that a lane gets 8 adjacent outputs of one row.
// args.out: [rows, args.out_columns]; transpose: two times kTransposeBytes of shared memory.
template <int kTransposeBytes, int kColumns, typename Args>
__device__ __forceinline__ void store_warp_rows(const Args& args, const Task& task,
                                                int first_column,
                                                const float (&sums)[2][kColumns / 2],
                                                uint32_t transpose) {
  // 8 rows at a time: 64 bytes a row.
  const int lane = threadIdx.x % kWarpSize;
  const int matrix = lane / 8;
  const int store_row = lane % 8;
  const uint32_t write_at = transpose + store_row * 64 + ((matrix ^ (store_row / 2)) << 4);
  const int row = lane / 4;
  const int chunk = lane % 4;
  const uint32_t read_at = transpose + row * 64 + ((chunk ^ (row / 2)) << 4);
  const int column = first_column + chunk * 8;
  __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row) * args.out_columns + column;
#pragma unroll
  for (int first = 0; first < kColumns; first += 16) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (first + 8 * j >= kColumns) continue;
      const float* even = &sums[0][first / 2 + 4 * j];
      const float* odd = &sums[1][first / 2 + 4 * j];
      ptx::store_matrices_transposed(
          write_at + j * kTransposeBytes, ptx::pack_bf16(even[0], even[1]),
          ptx::pack_bf16(odd[0], odd[1]), ptx::pack_bf16(even[2], even[3]),
          ptx::pack_bf16(odd[2], odd[3]));
    }
    __syncwarp();
    uint4 value[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) value[j] = ptx::load_shared_16(read_at + j * kTransposeBytes);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int tile_row = first + 8 * j + row;
      if (tile_row < task.rows && column < args.out_columns) {
        *reinterpret_cast<uint4*>(out + static_cast<size_t>(tile_row) * args.out_columns) =
            value[j];
      }
    }
  }
}

}  // namespace layered_sglang
