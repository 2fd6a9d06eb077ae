// The reference semantics of a MoE layer's experts with MXFP4 weights on the host: bf16 in and out,
// sums in fp32, the intermediate rounded to bf16. Weights in the kernels' layout.
#pragma once

#include <cstdint>

#include "experts/fused_experts_mxfp4_layout.h"

namespace layered_sglang {

struct FusedExpertsMxfp4CpuArgs {
  FusedExpertsSizes sizes;      // hidden and inter multiples of 32
  const uint16_t* x;            // bf16 [tokens, hidden]
  const uint8_t* w13;           // packed, of [E, 2 * inter, hidden], gate and up rows alternate
  const float* w13_bias;        // [E, 2 * inter]
  const uint8_t* w2;            // packed, of [E, hidden, inter]
  const float* w2_bias;         // [E, hidden]
  const float* topk_weights;    // [tokens, top_k]
  const int32_t* topk_ids;      // [tokens, top_k]; outside [0, E): contributes nothing
  uint16_t* y;                  // bf16 [tokens, hidden]
  float alpha;                  // of the SwiGLU (grouped_gemm_mxfp4_sm90.h)
  float limit;                  // of the SwiGLU
  bool bilinear;                // gate * up instead
  float routed_scaling_factor;  // of the sum
};

void fused_experts_mxfp4_cpu(const FusedExpertsMxfp4CpuArgs& args);

}  // namespace layered_sglang
