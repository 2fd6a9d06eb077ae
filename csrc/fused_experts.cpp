// fused_experts: schema, checks and the CPU implementation.
#include "fused_experts.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "experts/fused_experts_cpu.h"
#include "layer_check.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

const uint16_t* bits(const at::Tensor& tensor) {
  return static_cast<const uint16_t*>(tensor.const_data_ptr());
}

void fused_experts_out_on_cpu(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                              const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                              const at::Tensor& y, const std::optional<at::Tensor>& /*workspace*/,
                              c10::string_view activation, c10::string_view path,
                              double routed_scaling_factor) {
  const FusedExpertsSizes sizes = check_fused_experts(x, w13, w2, topk_weights, topk_ids);
  fused_experts_path(path);
  check_buffer("y", y, at::kBFloat16, x.sizes().vec(), x.device());
  fused_experts_cpu({sizes, bits(x), bits(w13), bits(w2), topk_weights.const_data_ptr<float>(),
                     topk_ids.const_data_ptr<int32_t>(),
                     static_cast<uint16_t*>(y.mutable_data_ptr()), is_bilinear(activation),
                     static_cast<float>(routed_scaling_factor)});
}

at::Tensor fused_experts_on_cpu(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                                const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                                c10::string_view activation, c10::string_view path,
                                double routed_scaling_factor) {
  const at::Tensor y = at::empty_like(x);
  fused_experts_out_on_cpu(x, w13, w2, topk_weights, topk_ids, y, std::nullopt, activation, path,
                           routed_scaling_factor);
  return y;
}

}  // namespace

FusedExpertsSizes check_fused_experts(const at::Tensor& x, const at::Tensor& w13,
                                      const at::Tensor& w2, const at::Tensor& topk_weights,
                                      const at::Tensor& topk_ids) {
  check_tokens(x, topk_ids);
  check_dimensions("w2", w2, at::kBFloat16, "[experts, hidden, inter]");
  const FusedExpertsSizes sizes = {x.size(0), topk_ids.size(1), w2.size(0), x.size(1), w2.size(2)};
  const at::Device device = x.device();
  check_buffer("w2", w2, at::kBFloat16, {sizes.num_experts, sizes.hidden, sizes.inter}, device);
  check_buffer("w13", w13, at::kBFloat16, {sizes.num_experts, 2 * sizes.inter, sizes.hidden},
               device);
  TORCH_CHECK_VALUE(sizes.hidden > 0 && sizes.hidden % kExpertHiddenMultiple == 0,
                    "x: expected a hidden size that is a multiple of ", kExpertHiddenMultiple,
                    ", got ", sizes.hidden);
  TORCH_CHECK_VALUE(sizes.inter > 0 && sizes.inter % kExpertInterMultiple == 0,
                    "w2: expected an intermediate size that is a multiple of ",
                    kExpertInterMultiple, ", got ", sizes.inter);
  check_routing(sizes, x, topk_weights, topk_ids, "w2");
  return sizes;
}

bool is_bilinear(std::string_view activation) {
  TORCH_CHECK_VALUE(activation == "silu" || activation == "bilinear",
                    "activation: expected silu or bilinear, got ", activation);
  return activation == "bilinear";
}

FusedExpertsPath fused_experts_path(std::string_view name) {
  if (name == "auto") return FusedExpertsPath::kAutomatic;
  if (name == "gemv") return FusedExpertsPath::kGemv;
  if (name == "gemm") return FusedExpertsPath::kGroupedGemm;
  TORCH_CHECK_VALUE(name == "gemm_pairs", "path: expected auto, gemv, gemm or gemm_pairs, got ",
                    name);
  return FusedExpertsPath::kGroupedGemmPairs;
}

}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  m.def(
      "fused_experts(Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids,"
      " str activation=\"silu\", str path=\"auto\", float routed_scaling_factor=1.0) -> Tensor");
  // The same into the caller's buffer, which may be x itself. workspace: uint8, at least
  // fused_experts_workspace_bytes; without one, torch's allocator gives one for the call.
  m.def(
      "fused_experts_out(Tensor x, Tensor w13, Tensor w2, Tensor topk_weights, Tensor topk_ids,"
      " Tensor(a!) y, Tensor(b!)? workspace=None, str activation=\"silu\", str path=\"auto\","
      " float routed_scaling_factor=1.0) -> ()");
}

TORCH_LIBRARY_IMPL(layered_sglang, CPU, m) {
  m.impl("fused_experts", &layered_sglang::fused_experts_on_cpu);
  m.impl("fused_experts_out", &layered_sglang::fused_experts_out_on_cpu);
}
