// The two grouped GEMMs of a MoE layer in block-scaled fp8 on a Hopper GPU, one persistent kernel
// each. Rows are those of an expert plan with row_alignment 1, as for the bf16 ones.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "experts/grouped_gemm_bf16_sm90.h"

namespace layered_sglang {

struct GroupedGemmFp8Options {
  bool wide_tiles = false;     // of 128 tokens, for many rows an expert (token_tiles_fp8.h)
  bool weights_once = false;   // weights are read by one task only: they need not stay in the L2
  bool overlap_launch = true;  // may start while the previous kernel in the stream still runs
};

// A matrix of e4m3 and its scales: value * scale is what it stands for.
struct Fp8Matrix {
  const uint8_t* values;
  const float* scales;
};

struct Fp8Intermediate {
  uint8_t* values;       // e4m3 [rows, inter]
  float* scales;         // [inter / 128, scale_stride]: of each row
  int64_t scale_stride;  // at least the rows
};

// intermediate = quantised activation(x[token] w13[expert]^T), gathering x by sorted_rows.
//   x [tokens, hidden], scales [tokens, hidden / 128];
//   w13 [E, 2 * inter, hidden]: of each expert the gate rows, then the up rows,
//   scales [E, 2 * inter / 128, hidden / 128]
cudaError_t gate_up_gemm_fp8_sm90(const GroupedGemmArgs& args, const Fp8Matrix& x,
                                  const Fp8Matrix& w13, const Fp8Intermediate& intermediate,
                                  const GroupedGemmFp8Options& options, cudaStream_t stream);

// out [rows, hidden] = intermediate w2[expert]^T.
//   w2 [E, hidden, inter], scales [E, hidden / 128, inter / 128]
cudaError_t down_gemm_fp8_sm90(const GroupedGemmArgs& args, const Fp8Intermediate& intermediate,
                               const Fp8Matrix& w2, __nv_bfloat16* out,
                               const GroupedGemmFp8Options& options, cudaStream_t stream);

}  // namespace layered_sglang
