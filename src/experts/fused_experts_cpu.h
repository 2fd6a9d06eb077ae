// The reference semantics of a MoE layer's experts on the host: bf16 in and out, fp32 sums, the
// intermediate rounded to bf16, as on the GPU.
#pragma once

#include <cstdint>

#include "experts/fused_experts_layout.h"

namespace layered_sglang {

struct FusedExpertsCpuArgs {
  FusedExpertsSizes sizes;
  const uint16_t* x;            // bf16 [tokens, hidden]
  const uint16_t* w13;          // bf16 [E, 2 * inter, hidden], gate rows, then up rows
  const uint16_t* w2;           // bf16 [E, hidden, inter]
  const float* topk_weights;    // [tokens, top_k]
  const int32_t* topk_ids;      // [tokens, top_k]; outside [0, E): contributes nothing
  uint16_t* y;                  // bf16 [tokens, hidden]
  bool bilinear;                // gate * up instead of silu(gate) * up
  float routed_scaling_factor;  // of the sum
};

void fused_experts_cpu(const FusedExpertsCpuArgs& args);

}  // namespace layered_sglang
