// Checks of a MoE layer's tensors that every format of its experts shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "experts/fused_experts_layout.h"

namespace layered_sglang {

// Raises ValueError unless `tensor` is contiguous, of this dtype and has the dimensions that
// `sizes` names: "[tokens, hidden]".
void check_dimensions(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                      const char* sizes);

// x bf16 [tokens, hidden] and topk_ids int32 [tokens, top_k], each for itself; raises ValueError.
void check_tokens(const at::Tensor& x, const at::Tensor& topk_ids);

// The routing and the limits of the plan; raises ValueError. experts_of: the tensor whose first
// dimension gave the number of experts.
void check_routing(const FusedExpertsSizes& sizes, const at::Tensor& x,
                   const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                   const char* experts_of);

// The caller's workspace, or a new one of `bytes` from torch's allocator; raises ValueError for one
// that is too small or not aligned. Also checks that x, w13, w2 and y are aligned to 16 bytes.
at::Tensor checked_workspace(const std::optional<at::Tensor>& workspace, int64_t bytes,
                             const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                             const at::Tensor& y);

}  // namespace layered_sglang
