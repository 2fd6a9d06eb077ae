// The two grouped GEMMs of a MoE layer with MXFP4 weights on a Hopper GPU, one persistent kernel
// each. Activations are bf16; sums are fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "experts/mxfp4_layout.h"

namespace layered_sglang {

// A neuron's output: limited, as gpt-oss's: gate = min(gate, limit), up in -limit ... limit, then
// gate * sigmoid(alpha * gate) * (up + 1). Or gate * up, which is exact on small integers.
struct Mxfp4Activation {
  float alpha;
  float limit;
  bool bilinear;
};

// One expert matrix [rows, depth] of each expert.
struct Mxfp4Matrix {
  const uint8_t* packed;  // experts/mxfp4_layout.h
  const float* bias;      // [E, rows]
};

struct GroupedGemmMxfp4Args {
  // The plan's outputs, with row_alignment 1.
  const int32_t* expert_offsets;  // [E + 1]
  const int32_t* sorted_rows;     // [rows]: flat pair, token * top_k + slot
  int32_t num_experts;
  int32_t top_k;
  int32_t hidden;
  int32_t inter;
  Mxfp4Activation activation;
};

struct GroupedGemmMxfp4Options {
  bool many_rows = false;      // tasks of 4 row blocks and up to 128 rows; otherwise 2 and 64
  bool weights_once = false;   // weights are read by one task only: they need not stay in the L2
  bool overlap_launch = true;  // may start while the previous kernel in the stream still runs
};

// intermediate [rows, inter] = activation(x[token] w13[expert]^T + bias), gathering x [tokens,
// hidden] by sorted_rows. w13: [E, 2 * inter, hidden], gate and up rows alternate.
cudaError_t gate_up_gemm_mxfp4_sm90(const GroupedGemmMxfp4Args& args, const __nv_bfloat16* x,
                                    const Mxfp4Matrix& w13, __nv_bfloat16* intermediate,
                                    const GroupedGemmMxfp4Options& options, cudaStream_t stream);

// out [rows, hidden] = intermediate w2[expert]^T + bias.   w2: [E, hidden, inter]
cudaError_t down_gemm_mxfp4_sm90(const GroupedGemmMxfp4Args& args,
                                 const __nv_bfloat16* intermediate, const Mxfp4Matrix& w2,
                                 __nv_bfloat16* out, const GroupedGemmMxfp4Options& options,
                                 cudaStream_t stream);

}  // namespace layered_sglang
