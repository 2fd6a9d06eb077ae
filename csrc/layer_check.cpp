#include "layer_check.h"

#include <ATen/ops/empty.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string_view>

#include "plan/expert_plan_layout.h"
#include "tensor_check.h"

namespace layered_sglang {

void check_dimensions(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                      const char* sizes) {
  const std::string_view text = sizes;
  const int64_t dimensions = 1 + std::count(text.begin(), text.end(), ',');
  TORCH_CHECK_VALUE(
      tensor.dim() == dimensions && tensor.scalar_type() == dtype && tensor.is_contiguous(), name,
      ": expected contiguous ", c10::getDtypeNames(dtype).first, " ", sizes, ", got ",
      describe(tensor));
}

void check_tokens(const at::Tensor& x, const at::Tensor& topk_ids) {
  check_dimensions("x", x, at::kBFloat16, "[tokens, hidden]");
  check_dimensions("topk_ids", topk_ids, at::kInt, "[tokens, top_k]");
}

void check_routing(const FusedExpertsSizes& sizes, const at::Tensor& x,
                   const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                   const char* experts_of) {
  check_buffer("topk_ids", topk_ids, at::kInt, {sizes.num_tokens, sizes.top_k}, x.device());
  check_buffer("topk_weights", topk_weights, at::kFloat, {sizes.num_tokens, sizes.top_k},
               x.device());
  TORCH_CHECK_VALUE(sizes.num_experts >= 1 && sizes.num_experts <= kMaxPlanExperts, experts_of,
                    ": expected 1 ... ", kMaxPlanExperts, " experts, got ", sizes.num_experts);
  TORCH_CHECK_VALUE(sizes.top_k >= 1 && sizes.top_k <= kMaxExpertTopK,
                    "topk_ids: expected a top_k of 1 ... ", kMaxExpertTopK, ", got ", sizes.top_k);
  TORCH_CHECK_VALUE(sizes.num_pairs() <= kMaxPlanPairs, "topk_ids: expected at most ",
                    kMaxPlanPairs, " elements, got ", describe(topk_ids));
}

at::Tensor checked_workspace(const std::optional<at::Tensor>& workspace, int64_t bytes,
                             const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                             const at::Tensor& y) {
  const at::Tensor space =
      workspace.has_value() ? *workspace : at::empty({bytes}, x.options().dtype(at::kByte));
  TORCH_CHECK_VALUE(space.scalar_type() == at::kByte && space.is_contiguous() &&
                        space.device() == x.device() && space.numel() >= bytes,
                    "workspace: expected contiguous uint8 of at least ", bytes, " bytes on ",
                    x.device(), ", got ", describe(space));
  check_alignment("x", x, 16);
  check_alignment("w13", w13, 16);
  check_alignment("w2", w2, 16);
  check_alignment("y", y, 16);
  check_alignment("workspace", space, kWorkspaceAlignment);
  return space;
}

}  // namespace layered_sglang
