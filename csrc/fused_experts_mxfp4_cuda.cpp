// fused_experts_mxfp4: the CUDA implementation. Compiled only with nvcc present.
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "experts/fused_experts_mxfp4_sm90.h"
#include "fused_experts_mxfp4.h"
#include "layer_check.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

int64_t workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t hidden,
                        int64_t inter) {
  return fused_experts_mxfp4_workspace_bytes({num_tokens, top_k, num_experts, hidden, inter});
}

void fused_experts_mxfp4_out_on_cuda(const at::Tensor& x, const at::Tensor& w13,
                                     const at::Tensor& w13_bias, const at::Tensor& w2,
                                     const at::Tensor& w2_bias, const at::Tensor& topk_weights,
                                     const at::Tensor& topk_ids, const at::Tensor& y,
                                     const std::optional<at::Tensor>& workspace,
                                     c10::string_view activation, c10::string_view path,
                                     double alpha, double limit, double routed_scaling_factor) {
  const c10::cuda::CUDAGuard guard(x.device());
  FusedExpertsMxfp4Args args = {};
  args.sizes = check_fused_experts_mxfp4(x, {w13, w13_bias, w2, w2_bias}, topk_weights, topk_ids);
  check_buffer("y", y, at::kBFloat16, x.sizes().vec(), x.device());
  const at::Tensor space =
      checked_workspace(workspace, fused_experts_mxfp4_workspace_bytes(args.sizes), x, w13, w2, y);
  args.x = static_cast<const __nv_bfloat16*>(x.const_data_ptr());
  args.w13 = {w13.const_data_ptr<uint8_t>(), w13_bias.const_data_ptr<float>()};
  args.w2 = {w2.const_data_ptr<uint8_t>(), w2_bias.const_data_ptr<float>()};
  args.topk_weights = topk_weights.const_data_ptr<float>();
  args.topk_ids = topk_ids.const_data_ptr<int32_t>();
  args.y = static_cast<__nv_bfloat16*>(y.mutable_data_ptr());
  args.workspace = space.mutable_data_ptr();
  args.activation = {static_cast<float>(alpha), static_cast<float>(limit),
                     is_bilinear_mxfp4(activation)};
  args.routed_scaling_factor = static_cast<float>(routed_scaling_factor);
  const FusedExpertsMxfp4Path chosen = fused_experts_mxfp4_path(path);
  TORCH_CHECK_VALUE(chosen != FusedExpertsMxfp4Path::kGemv || mxfp4_gemv_takes(args.sizes),
                    "path: gemv is for few pairs and top_k * inter up to about 23000, got ",
                    args.sizes.num_tokens, " tokens, top_k ", args.sizes.top_k, ", inter ",
                    args.sizes.inter);
  TORCH_CHECK_VALUE(chosen != FusedExpertsMxfp4Path::kStream || mxfp4_stream_takes(args.sizes),
                    "path: stream is for hidden and inter up to ",
                    kMxfp4StreamBlocks * kMxfp4BlockDepth, ", got ", args.sizes.hidden, " and ",
                    args.sizes.inter);
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(x.get_device());
  C10_CUDA_CHECK(fused_experts_mxfp4_sm90(args, chosen, stream.stream()));
}

at::Tensor fused_experts_mxfp4_on_cuda(const at::Tensor& x, const at::Tensor& w13,
                                       const at::Tensor& w13_bias, const at::Tensor& w2,
                                       const at::Tensor& w2_bias, const at::Tensor& topk_weights,
                                       const at::Tensor& topk_ids, c10::string_view activation,
                                       c10::string_view path, double alpha, double limit,
                                       double routed_scaling_factor) {
  const at::Tensor y = at::empty_like(x);
  fused_experts_mxfp4_out_on_cuda(x, w13, w13_bias, w2, w2_bias, topk_weights, topk_ids, y,
                                  std::nullopt, activation, path, alpha, limit,
                                  routed_scaling_factor);
  return y;
}

}  // namespace
}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  // Bytes of workspace that fused_experts_mxfp4_out needs on a GPU.
  m.def(
      "fused_experts_mxfp4_workspace_bytes(int num_tokens, int top_k, int num_experts, int hidden,"
      " int inter) -> int",
      &layered_sglang::workspace_bytes);
}

TORCH_LIBRARY_IMPL(layered_sglang, CUDA, m) {
  m.impl("fused_experts_mxfp4", &layered_sglang::fused_experts_mxfp4_on_cuda);
  m.impl("fused_experts_mxfp4_out", &layered_sglang::fused_experts_mxfp4_out_on_cuda);
}
