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
  int32_t* next_pieces;  // [2], of the stream tasks' two GEMMs; the first is 0 before gate/up
};

// What a task is: row blocks of 64 weight rows times a token tile. kStream keeps its tokens in
// registers: K may be up to kMxfp4StreamBlocks K blocks.
enum class Mxfp4Tasks {
  kStream,  // 1 row block, up to 16 tokens
  kFew,     // 2, up to 64
  kMany,    // 4, up to 144
};

struct GroupedGemmMxfp4Options {
  Mxfp4Tasks tasks = Mxfp4Tasks::kFew;
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
