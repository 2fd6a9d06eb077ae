// What the MXFP4 fused experts' CPU and CUDA implementations share: the checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "experts/fused_experts_mxfp4_layout.h"

namespace layered_sglang {

// An MXFP4 layer's weights: values with their scales in the kernels' layout
// (experts/mxfp4_layout.h), and float32 biases.
struct Mxfp4Weights {
  const at::Tensor& w13;
  const at::Tensor& w13_bias;
  const at::Tensor& w2;
  const at::Tensor& w2_bias;
};

// Checks all tensors against each other and the limits; raises ValueError.
FusedExpertsSizes check_fused_experts_mxfp4(const at::Tensor& x, const Mxfp4Weights& weights,
                                            const at::Tensor& topk_weights,
                                            const at::Tensor& topk_ids);

// Whether `activation` is "bilinear" and not "swiglu"; raises ValueError for anything else.
bool is_bilinear_mxfp4(std::string_view activation);

// "auto", "gemv", "stream", "few" or "many"; raises ValueError for anything else.
FusedExpertsMxfp4Path fused_experts_mxfp4_path(std::string_view name);

}  // namespace layered_sglang
