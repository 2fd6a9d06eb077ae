// fused_experts_fp8: schema, checks and the CPU implementation.
#include "fused_experts_fp8.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "experts/fused_experts_fp8_cpu.h"
#include "fused_experts.h"
#include "layer_check.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

constexpr at::ScalarType kE4m3 = at::kFloat8_e4m3fn;

const uint8_t* bytes(const at::Tensor& tensor) {
  return static_cast<const uint8_t*>(tensor.const_data_ptr());
}

void fused_experts_fp8_out_on_cpu(const at::Tensor& x, const at::Tensor& w13,
                                  const at::Tensor& w13_scale_inv, const at::Tensor& w2,
                                  const at::Tensor& w2_scale_inv, const at::Tensor& topk_weights,
                                  const at::Tensor& topk_ids, const at::Tensor& y,
                                  const std::optional<at::Tensor>& /*workspace*/,
                                  c10::string_view activation, c10::string_view path,
                                  double routed_scaling_factor) {
  fused_experts_fp8_path(path);
  const FusedExpertsSizes sizes =
      check_fused_experts_fp8(x, {w13, w13_scale_inv, w2, w2_scale_inv}, topk_weights, topk_ids);
  check_buffer("y", y, at::kBFloat16, x.sizes().vec(), x.device());
  fused_experts_fp8_cpu({sizes, static_cast<const uint16_t*>(x.const_data_ptr()), bytes(w13),
                         w13_scale_inv.const_data_ptr<float>(), bytes(w2),
                         w2_scale_inv.const_data_ptr<float>(), topk_weights.const_data_ptr<float>(),
                         topk_ids.const_data_ptr<int32_t>(),
                         static_cast<uint16_t*>(y.mutable_data_ptr()), is_bilinear(activation),
                         static_cast<float>(routed_scaling_factor)});
}

at::Tensor fused_experts_fp8_on_cpu(const at::Tensor& x, const at::Tensor& w13,
                                    const at::Tensor& w13_scale_inv, const at::Tensor& w2,
                                    const at::Tensor& w2_scale_inv, const at::Tensor& topk_weights,
                                    const at::Tensor& topk_ids, c10::string_view activation,
                                    c10::string_view path, double routed_scaling_factor) {
  const at::Tensor y = at::empty_like(x);
  fused_experts_fp8_out_on_cpu(x, w13, w13_scale_inv, w2, w2_scale_inv, topk_weights, topk_ids, y,
                               std::nullopt, activation, path, routed_scaling_factor);
  return y;
}

}  // namespace

FusedExpertsSizes check_fused_experts_fp8(const at::Tensor& x, const Fp8Weights& weights,
                                          const at::Tensor& topk_weights,
                                          const at::Tensor& topk_ids) {
  const at::Tensor& w2 = weights.w2;
  check_tokens(x, topk_ids);
  check_dimensions("w2", w2, kE4m3, "[experts, hidden, inter]");
  const FusedExpertsSizes sizes = {x.size(0), topk_ids.size(1), w2.size(0), x.size(1), w2.size(2)};
  TORCH_CHECK_VALUE(sizes.hidden > 0 && sizes.hidden % kFp8Block == 0,
                    "x: expected a hidden size that is a multiple of ", kFp8Block, ", got ",
                    sizes.hidden);
  TORCH_CHECK_VALUE(sizes.inter > 0 && sizes.inter % kFp8Block == 0,
                    "w2: expected an intermediate size that is a multiple of ", kFp8Block, ", got ",
                    sizes.inter);
  const at::Device device = x.device();
  const int64_t hidden_blocks = sizes.hidden / kFp8Block;
  const int64_t inter_blocks = sizes.inter / kFp8Block;
  check_buffer("w2", w2, kE4m3, {sizes.num_experts, sizes.hidden, sizes.inter}, device);
  check_buffer("w13", weights.w13, kE4m3, {sizes.num_experts, 2 * sizes.inter, sizes.hidden},
               device);
  check_buffer("w13_scale_inv", weights.w13_scale_inv, at::kFloat,
               {sizes.num_experts, 2 * inter_blocks, hidden_blocks}, device);
  check_buffer("w2_scale_inv", weights.w2_scale_inv, at::kFloat,
               {sizes.num_experts, hidden_blocks, inter_blocks}, device);
  check_routing(sizes, x, topk_weights, topk_ids, "w2");
  return sizes;
}

FusedExpertsFp8Path fused_experts_fp8_path(std::string_view name) {
  if (name == "auto") return FusedExpertsFp8Path::kAutomatic;
  if (name == "narrow") return FusedExpertsFp8Path::kNarrow;
  TORCH_CHECK_VALUE(name == "wide", "path: expected auto, narrow or wide, got ", name);
  return FusedExpertsFp8Path::kWide;
}

}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  m.def(
      "fused_experts_fp8(Tensor x, Tensor w13, Tensor w13_scale_inv, Tensor w2,"
      " Tensor w2_scale_inv, Tensor topk_weights, Tensor topk_ids, str activation=\"silu\","
      " str path=\"auto\", float routed_scaling_factor=1.0) -> Tensor");
  // The same into the caller's buffer, which may be x itself. workspace: uint8, at least
  // fused_experts_fp8_workspace_bytes; without one, torch's allocator gives one for the call.
  m.def(
      "fused_experts_fp8_out(Tensor x, Tensor w13, Tensor w13_scale_inv, Tensor w2,"
      " Tensor w2_scale_inv, Tensor topk_weights, Tensor topk_ids, Tensor(a!) y,"
      " Tensor(b!)? workspace=None, str activation=\"silu\","
      " str path=\"auto\", float routed_scaling_factor=1.0) -> ()");
}

TORCH_LIBRARY_IMPL(layered_sglang, CPU, m) {
  m.impl("fused_experts_fp8", &layered_sglang::fused_experts_fp8_on_cpu);
  m.impl("fused_experts_fp8_out", &layered_sglang::fused_experts_fp8_out_on_cpu);
}
