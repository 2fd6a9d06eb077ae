// What the fp8 fused experts' CPU and CUDA implementations share: the checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "experts/fused_experts_fp8_layout.h"
#include "experts/fused_experts_layout.h"

namespace layered_sglang {

// An fp8 layer's weights: e4m3 values and float32 scales of blocks of 128 x 128.
struct Fp8Weights {
  const at::Tensor& w13;
  const at::Tensor& w13_scale_inv;
  const at::Tensor& w2;
  const at::Tensor& w2_scale_inv;
};

// Checks all tensors against each other and the limits; raises ValueError.
FusedExpertsSizes check_fused_experts_fp8(const at::Tensor& x, const Fp8Weights& weights,
                                          const at::Tensor& topk_weights,
                                          const at::Tensor& topk_ids);

// "auto", "narrow" or "wide"; raises ValueError for anything else.
FusedExpertsFp8Path fused_experts_fp8_path(std::string_view name);

}  // namespace layered_sglang
