// fused_experts: the CUDA implementation. Compiled only with nvcc present.
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <atomic>
#include <limits>

#include "experts/fused_experts_sm90.h"
#include "fused_experts.h"
#include "layer_check.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

std::atomic<int> multiprocessor_limit{0};

void limit_multiprocessors(int64_t count) {
  TORCH_CHECK_VALUE(count >= 0 && count <= std::numeric_limits<int>::max(),
                    "count: expected at least 0, got ", count);
  multiprocessor_limit = static_cast<int>(count);
}

int64_t workspace_bytes(int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t hidden,
                        int64_t inter) {
  return fused_experts_workspace_bytes({num_tokens, top_k, num_experts, hidden, inter});
}

const __nv_bfloat16* bf16(const at::Tensor& tensor) {
  return static_cast<const __nv_bfloat16*>(tensor.const_data_ptr());
}

void fused_experts_out_on_cuda(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                               const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                               const at::Tensor& y, const std::optional<at::Tensor>& workspace,
                               c10::string_view activation, c10::string_view path,
                               double routed_scaling_factor) {
  const c10::cuda::CUDAGuard guard(x.device());
  FusedExpertsArgs args = {};
  args.sizes = check_fused_experts(x, w13, w2, topk_weights, topk_ids);
  check_buffer("y", y, at::kBFloat16, x.sizes().vec(), x.device());
  const at::Tensor space =
      checked_workspace(workspace, fused_experts_workspace_bytes(args.sizes), x, w13, w2, y);
  args.x = bf16(x);
  args.w13 = bf16(w13);
  args.w2 = bf16(w2);
  args.topk_weights = topk_weights.const_data_ptr<float>();
  args.topk_ids = topk_ids.const_data_ptr<int32_t>();
  args.y = static_cast<__nv_bfloat16*>(y.mutable_data_ptr());
  args.workspace = space.mutable_data_ptr();
  args.tuning.multiprocessors = multiprocessor_limit;
  args.activation = is_bilinear(activation) ? Activation::kBilinear : Activation::kSwiglu;
  args.routed_scaling_factor = static_cast<float>(routed_scaling_factor);
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(x.get_device());
  C10_CUDA_CHECK(fused_experts_sm90(args, fused_experts_path(path), stream.stream()));
}

at::Tensor fused_experts_on_cuda(const at::Tensor& x, const at::Tensor& w13, const at::Tensor& w2,
                                 const at::Tensor& topk_weights, const at::Tensor& topk_ids,
                                 c10::string_view activation, c10::string_view path,
                                 double routed_scaling_factor) {
  const at::Tensor y = at::empty_like(x);
  fused_experts_out_on_cuda(x, w13, w2, topk_weights, topk_ids, y, std::nullopt, activation, path,
                            routed_scaling_factor);
  return y;
}

}  // namespace
}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  // Bytes of workspace that fused_experts_out needs on a GPU.
  m.def(
      "fused_experts_workspace_bytes(int num_tokens, int top_k, int num_experts, int hidden,"
      " int inter) -> int",
      &layered_sglang::workspace_bytes);
  // From now on, in this process, the experts' persistent grids fill that many
  // multiprocessors (0: all), as a stream of a green context has no more.
  m.def("limit_multiprocessors(int count) -> ()", &layered_sglang::limit_multiprocessors);
}

TORCH_LIBRARY_IMPL(layered_sglang, CUDA, m) {
  m.impl("fused_experts", &layered_sglang::fused_experts_on_cuda);
  m.impl("fused_experts_out", &layered_sglang::fused_experts_out_on_cuda);
}
