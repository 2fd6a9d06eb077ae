// fused_experts_mxfp4: schema, checks and the CPU implementation.
#include "fused_experts_mxfp4.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "experts/fused_experts_mxfp4_cpu.h"
#include "layer_check.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

void check_packed(const char* name, const at::Tensor& packed, int64_t experts, int64_t rows,
                  int64_t depth, at::Device device) {
  check_buffer(name, packed, at::kByte,
               {experts, mxfp4_blocks(rows), mxfp4_blocks(depth), kMxfp4BlockBytes}, device);
}

void fused_experts_mxfp4_out_on_cpu(const at::Tensor& x, const at::Tensor& w13,
                                    const at::Tensor& w13_bias, const at::Tensor& w2,
                                    const at::Tensor& w2_bias, const at::Tensor& topk_weights,
                                    const at::Tensor& topk_ids, const at::Tensor& y,
                                    const std::optional<at::Tensor>& /*workspace*/,
                                    c10::string_view activation, c10::string_view path,
                                    double alpha, double limit, double routed_scaling_factor) {
  fused_experts_mxfp4_path(path);
  FusedExpertsMxfp4CpuArgs args = {};
  args.sizes = check_fused_experts_mxfp4(x, {w13, w13_bias, w2, w2_bias}, topk_weights, topk_ids);
  check_buffer("y", y, at::kBFloat16, x.sizes().vec(), x.device());
  args.x = static_cast<const uint16_t*>(x.const_data_ptr());
  args.w13 = w13.const_data_ptr<uint8_t>();
  args.w13_bias = w13_bias.const_data_ptr<float>();
  args.w2 = w2.const_data_ptr<uint8_t>();
  args.w2_bias = w2_bias.const_data_ptr<float>();
  args.topk_weights = topk_weights.const_data_ptr<float>();
  args.topk_ids = topk_ids.const_data_ptr<int32_t>();
  args.y = static_cast<uint16_t*>(y.mutable_data_ptr());
  args.alpha = static_cast<float>(alpha);
  args.limit = static_cast<float>(limit);
  args.bilinear = is_bilinear_mxfp4(activation);
  args.routed_scaling_factor = static_cast<float>(routed_scaling_factor);
  fused_experts_mxfp4_cpu(args);
}

at::Tensor fused_experts_mxfp4_on_cpu(const at::Tensor& x, const at::Tensor& w13,
                                      const at::Tensor& w13_bias, const at::Tensor& w2,
                                      const at::Tensor& w2_bias, const at::Tensor& topk_weights,
                                      const at::Tensor& topk_ids, c10::string_view activation,
                                      c10::string_view path, double alpha, double limit,
                                      double routed_scaling_factor) {
  const at::Tensor y = at::empty_like(x);
  fused_experts_mxfp4_out_on_cpu(x, w13, w13_bias, w2, w2_bias, topk_weights, topk_ids, y,
                                 std::nullopt, activation, path, alpha, limit,
                                 routed_scaling_factor);
  return y;
}

}  // namespace

FusedExpertsSizes check_fused_experts_mxfp4(const at::Tensor& x, const Mxfp4Weights& weights,
                                            const at::Tensor& topk_weights,
                                            const at::Tensor& topk_ids) {
  const at::Tensor& bias = weights.w13_bias;
  check_tokens(x, topk_ids);
  check_dimensions("w13_bias", bias, at::kFloat, "[experts, 2 * inter]");
  const FusedExpertsSizes sizes = {x.size(0), topk_ids.size(1), bias.size(0), x.size(1),
                                   bias.size(1) / 2};
  TORCH_CHECK_VALUE(sizes.hidden > 0 && sizes.hidden % kMxfp4Group == 0,
                    "x: expected a hidden size that is a multiple of ", kMxfp4Group, ", got ",
                    sizes.hidden);
  TORCH_CHECK_VALUE(bias.size(1) > 0 && bias.size(1) % (2 * kMxfp4Group) == 0,
                    "w13_bias: expected two times a multiple of ", kMxfp4Group, " columns, got ",
                    bias.size(1));
  const at::Device device = x.device();
  check_buffer("w13_bias", bias, at::kFloat, {sizes.num_experts, 2 * sizes.inter}, device);
  check_packed("w13", weights.w13, sizes.num_experts, 2 * sizes.inter, sizes.hidden, device);
  check_packed("w2", weights.w2, sizes.num_experts, sizes.hidden, sizes.inter, device);
  check_buffer("w2_bias", weights.w2_bias, at::kFloat, {sizes.num_experts, sizes.hidden}, device);
  check_routing(sizes, x, topk_weights, topk_ids, "w13_bias");
  return sizes;
}

bool is_bilinear_mxfp4(std::string_view activation) {
  if (activation == "swiglu") return false;
  TORCH_CHECK_VALUE(activation == "bilinear", "activation: expected swiglu or bilinear, got ",
                    activation);
  return true;
}

FusedExpertsMxfp4Path fused_experts_mxfp4_path(std::string_view name) {
  if (name == "auto") return FusedExpertsMxfp4Path::kAutomatic;
  if (name == "gemv") return FusedExpertsMxfp4Path::kGemv;
  if (name == "few") return FusedExpertsMxfp4Path::kFew;
  if (name == "stream") return FusedExpertsMxfp4Path::kStream;
  TORCH_CHECK_VALUE(name == "many", "path: expected auto, gemv, stream, few or many, got ", name);
  return FusedExpertsMxfp4Path::kMany;
}

}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  m.def(
      "fused_experts_mxfp4(Tensor x, Tensor w13, Tensor w13_bias, Tensor w2, Tensor w2_bias,"
      " Tensor topk_weights, Tensor topk_ids, str activation=\"swiglu\", str path=\"auto\","
      " float alpha=1.702, float limit=7.0, float routed_scaling_factor=1.0) -> Tensor");
  // The same into the caller's buffer, which may be x itself. workspace: uint8, at least
  // fused_experts_mxfp4_workspace_bytes; without one, torch's allocator gives one for the call.
  m.def(
      "fused_experts_mxfp4_out(Tensor x, Tensor w13, Tensor w13_bias, Tensor w2, Tensor w2_bias,"
      " Tensor topk_weights, Tensor topk_ids, Tensor(a!) y, Tensor(b!)? workspace=None,"
      " str activation=\"swiglu\", str path=\"auto\", float alpha=1.702, float limit=7.0,"
      " float routed_scaling_factor=1.0) -> ()");
}

TORCH_LIBRARY_IMPL(layered_sglang, CPU, m) {
  m.impl("fused_experts_mxfp4", &layered_sglang::fused_experts_mxfp4_on_cpu);
  m.impl("fused_experts_mxfp4_out", &layered_sglang::fused_experts_mxfp4_out_on_cpu);
}
