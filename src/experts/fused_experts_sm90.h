// A MoE layer's experts on a Hopper GPU: chooses a path and enqueues its kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "experts/fused_experts_layout.h"
#include "experts/grouped_gemm_bf16_sm90.h"

namespace layered_sglang {

struct FusedExpertsArgs {
  FusedExpertsSizes sizes;
  const __nv_bfloat16* x;     // [tokens, hidden]
  const __nv_bfloat16* w13;   // [E, 2 * inter, hidden], gate rows, then up rows
  const __nv_bfloat16* w2;    // [E, hidden, inter]
  const float* topk_weights;  // [tokens, top_k]
  const int32_t* topk_ids;    // [tokens, top_k]; outside [0, E): contributes nothing
  __nv_bfloat16* y;           // [tokens, hidden]; may be x
  void* workspace;            // fused_experts_workspace_bytes, 256-byte aligned
  Activation activation;
  float routed_scaling_factor;  // of the sum
  GroupedGemmTuning tuning;
};

int64_t fused_experts_workspace_bytes(const FusedExpertsSizes& sizes);

// y = sum over the slots of topk_weight * expert(x). Enqueues on `stream` of the current device and
// waits for nothing. Pointers are 16-byte aligned.
cudaError_t fused_experts_sm90(const FusedExpertsArgs& args, FusedExpertsPath path,
                               cudaStream_t stream);

}  // namespace layered_sglang
