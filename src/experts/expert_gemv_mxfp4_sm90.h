// A MoE layer's experts with MXFP4 weights for few (token, expert) pairs: two launches, no plan.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "experts/fused_experts_mxfp4_layout.h"
#include "experts/grouped_gemm_mxfp4_sm90.h"

namespace layered_sglang {

struct ExpertGemvMxfp4Args {
  const __nv_bfloat16* x;       // [tokens, hidden]
  Mxfp4Matrix w13;              // [E, 2 * inter, hidden], gate and up rows alternate
  Mxfp4Matrix w2;               // [E, hidden, inter]
  const int32_t* topk_ids;      // [tokens, top_k]; outside [0, E): contributes nothing
  const float* topk_weights;    // [tokens, top_k]
  __nv_bfloat16* intermediate;  // [tokens * top_k, inter]
  __nv_bfloat16* y;             // [tokens, hidden]; may be x
  FusedExpertsSizes sizes;      // mxfp4_gemv_takes
  Mxfp4Activation activation;
  float routed_scaling_factor;  // of the sum
};

cudaError_t expert_gemv_mxfp4_sm90(const ExpertGemvMxfp4Args& args, cudaStream_t stream);

}  // namespace layered_sglang
