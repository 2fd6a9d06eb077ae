// A MoE layer's experts in block-scaled fp8 on a Hopper GPU: enqueues their kernels.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include "experts/fused_experts_fp8_layout.h"
#include "experts/grouped_gemm_fp8_sm90.h"

namespace layered_sglang {

struct FusedExpertsFp8Args {
  FusedExpertsSizes sizes;    // hidden and inter multiples of 128
  const __nv_bfloat16* x;     // [tokens, hidden]
  Fp8Matrix w13;              // [E, 2 * inter, hidden], gate rows, then up rows
  Fp8Matrix w2;               // [E, hidden, inter]
  const float* topk_weights;  // [tokens, top_k]
  const int32_t* topk_ids;    // [tokens, top_k]; outside [0, E): contributes nothing
  __nv_bfloat16* y;           // [tokens, hidden]; may be x
  void* workspace;            // fused_experts_fp8_workspace_bytes, 256-byte aligned
  Activation activation;
  float routed_scaling_factor;  // of the sum
};

int64_t fused_experts_fp8_workspace_bytes(const FusedExpertsSizes& sizes);

// y = sum over the slots of topk_weight * expert(x). Enqueues on `stream` of the current device and
// waits for nothing. Pointers are 16-byte aligned.
cudaError_t fused_experts_fp8_sm90(const FusedExpertsFp8Args& args, FusedExpertsFp8Path path,
                                   cudaStream_t stream);

}  // namespace layered_sglang
