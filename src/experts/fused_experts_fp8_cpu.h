// The reference semantics of a MoE layer's experts in block-scaled fp8 on the host: bf16 in and
// out, sums in fp32, x and the intermediate quantised as on the GPU.
#pragma once

#include <cstdint>

#include "experts/fused_experts_fp8_layout.h"
#include "experts/fused_experts_layout.h"

namespace layered_sglang {

struct FusedExpertsFp8CpuArgs {
  FusedExpertsSizes sizes;      // hidden and inter multiples of 128
  const uint16_t* x;            // bf16 [tokens, hidden]
  const uint8_t* w13;           // e4m3 [E, 2 * inter, hidden], gate rows, then up rows
  const float* w13_scale;       // [E, 2 * inter / 128, hidden / 128]
  const uint8_t* w2;            // e4m3 [E, hidden, inter]
  const float* w2_scale;        // [E, hidden / 128, inter / 128]
  const float* topk_weights;    // [tokens, top_k]
  const int32_t* topk_ids;      // [tokens, top_k]; outside [0, E): contributes nothing
  uint16_t* y;                  // bf16 [tokens, hidden]
  bool bilinear;                // gate * up instead of silu(gate) * up
  float routed_scaling_factor;  // of the sum
};

void fused_experts_fp8_cpu(const FusedExpertsFp8CpuArgs& args);

}  // namespace layered_sglang
