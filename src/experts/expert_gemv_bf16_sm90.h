// The experts of a few tokens without a plan: a warp computes one output neuron from registers.
//
// The weights of a pair's expert are read once per pair, so this pays while few pairs share one.
#pragma once

#include "experts/grouped_gemm_bf16_sm90.h"

namespace layered_sglang {

struct ExpertGemvArgs {
  const __nv_bfloat16* x;       // [tokens, hidden]
  const __nv_bfloat16* w13;     // [E, 2 * inter, hidden], gate rows, then up rows
  const __nv_bfloat16* w2;      // [E, hidden, inter]
  const int32_t* topk_ids;      // [tokens, top_k]; outside [0, E): contributes nothing
  const float* topk_weights;    // [tokens, top_k]
  __nv_bfloat16* intermediate;  // [tokens * top_k, inter], scratch
  __nv_bfloat16* y;             // [tokens, hidden]; may be x
  int32_t num_tokens;
  int32_t top_k;
  int32_t num_experts;
  int32_t hidden;  // a multiple of 8
  int32_t inter;   // a multiple of 8
  Activation activation;
  float routed_scaling_factor;  // of the sum over the slots
};

// Two launches: gate/up with the activation, then down with the weighted sum over the slots.
cudaError_t expert_gemv_bf16_sm90(const ExpertGemvArgs& args, cudaStream_t stream);

}  // namespace layered_sglang
