// What the fused experts' CPU and CUDA implementations share: the checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "experts/fused_experts_layout.h"

namespace layered_sglang {

// Checks all tensors against each other and the limits; raises ValueError. `y` may be undefined.
FusedExpertsSizes check_fused_experts(const at::Tensor& x, const at::Tensor& w13,
                                      const at::Tensor& w2, const at::Tensor& topk_weights,
                                      const at::Tensor& topk_ids);

// Whether `activation` is "bilinear" and not "silu"; raises ValueError for anything else.
bool is_bilinear(std::string_view activation);

// "auto", "gemv", "gemm" or "gemm_pairs"; raises ValueError for anything else.
FusedExpertsPath fused_experts_path(std::string_view name);

}  // namespace layered_sglang
