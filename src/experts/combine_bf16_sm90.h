// The weighted sum of each token's expert rows, in the order of its slots, in fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace layered_sglang {

struct CombineArgs {
  const __nv_bfloat16* rows;    // [num_rows, hidden]: the down GEMM's result
  const int32_t* inverse_rows;  // [tokens, top_k]: row of each slot, -1 for none
  const float* topk_weights;    // [tokens, top_k]
  __nv_bfloat16* y;             // [tokens, hidden]; zero where a token has no row
  int32_t num_tokens;
  int32_t top_k;
  int32_t hidden;               // a multiple of 8
  float routed_scaling_factor;  // of the sum over the slots
};

cudaError_t combine_bf16_sm90(const CombineArgs& args, bool overlap_launch, cudaStream_t stream);

}  // namespace layered_sglang
