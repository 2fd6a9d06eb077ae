// A MoE layer's experts with MXFP4 weights on a Hopper GPU: enqueues their kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "experts/fused_experts_mxfp4_layout.h"
#include "experts/grouped_gemm_mxfp4_sm90.h"

namespace layered_sglang {

struct FusedExpertsMxfp4Args {
  FusedExpertsSizes sizes;    // hidden and inter multiples of 32
  const __nv_bfloat16* x;     // [tokens, hidden]
  Mxfp4Matrix w13;            // [E, 2 * inter, hidden], gate and up rows alternate
  Mxfp4Matrix w2;             // [E, hidden, inter]
  const float* topk_weights;  // [tokens, top_k]
  const int32_t* topk_ids;    // [tokens, top_k]; outside [0, E): contributes nothing
  __nv_bfloat16* y;           // [tokens, hidden]; may be x
  void* workspace;            // fused_experts_mxfp4_workspace_bytes, 256-byte aligned
  Mxfp4Activation activation;
  float routed_scaling_factor;  // of the sum
};

int64_t fused_experts_mxfp4_workspace_bytes(const FusedExpertsSizes& sizes);

// y = sum over the slots of topk_weight * expert(x). Enqueues on `stream` of the current device and
// waits for nothing. Pointers are 16-byte aligned.
cudaError_t fused_experts_mxfp4_sm90(const FusedExpertsMxfp4Args& args, FusedExpertsMxfp4Path path,
                                     cudaStream_t stream);

}  // namespace layered_sglang
