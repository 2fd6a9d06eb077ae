// expert_plan: the CUDA implementation. Compiled only with nvcc present.
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "expert_plan.h"
#include "plan/expert_plan_sm90.h"
#include "tensor_check.h"

namespace layered_sglang {
namespace {

int64_t workspace_bytes(int64_t num_pairs, int64_t num_experts, int64_t row_alignment) {
  return static_cast<int64_t>(expert_plan_workspace_bytes(num_pairs, num_experts, row_alignment));
}

void launch(const at::Tensor& topk_ids, const ExpertPlanArgs& args, void* workspace) {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(topk_ids.get_device());
  C10_CUDA_CHECK(expert_plan_sm90(args, workspace, stream.stream()));
}

void expert_plan_out_on_cuda(const at::Tensor& topk_ids, int64_t num_experts, int64_t row_alignment,
                             const at::Tensor& expert_offsets, const at::Tensor& expert_counts,
                             const at::Tensor& sorted_rows, const at::Tensor& inverse_rows,
                             const at::Tensor& workspace) {
  const c10::cuda::CUDAGuard guard(topk_ids.device());
  check_expert_plan_input(topk_ids, num_experts, row_alignment);
  const int64_t needed = workspace_bytes(topk_ids.numel(), num_experts, row_alignment);
  TORCH_CHECK_VALUE(workspace.scalar_type() == at::kByte && workspace.is_contiguous() &&
                        workspace.device() == topk_ids.device() && workspace.numel() >= needed &&
                        reinterpret_cast<uintptr_t>(workspace.const_data_ptr()) % 4 == 0,
                    "workspace: expected contiguous uint8 of at least ", needed,
                    " bytes, 4-byte aligned, on ", topk_ids.device(), ", got ",
                    describe(workspace));
  launch(topk_ids,
         expert_plan_args(topk_ids, num_experts, row_alignment, expert_offsets, expert_counts,
                          sorted_rows, inverse_rows),
         workspace.mutable_data_ptr());
}

ExpertPlanTensors expert_plan_on_cuda(const at::Tensor& topk_ids, int64_t num_experts,
                                      int64_t row_alignment) {
  const c10::cuda::CUDAGuard guard(topk_ids.device());
  const int64_t row_capacity = check_expert_plan_input(topk_ids, num_experts, row_alignment);
  ExpertPlanTensors plan = empty_expert_plan(topk_ids, num_experts, row_capacity);
  const auto& [expert_offsets, expert_counts, sorted_rows, inverse_rows] = plan;
  const int64_t needed = workspace_bytes(topk_ids.numel(), num_experts, row_alignment);
  const at::Tensor workspace =
      needed > 0 ? at::empty({needed}, topk_ids.options().dtype(at::kByte)) : at::Tensor();
  launch(topk_ids,
         expert_plan_args(topk_ids, num_experts, row_alignment, expert_offsets, expert_counts,
                          sorted_rows, inverse_rows),
         needed > 0 ? workspace.mutable_data_ptr() : nullptr);
  return plan;
}

}  // namespace
}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  // Bytes of workspace that expert_plan_out needs on a GPU; 0 where it needs none.
  m.def("expert_plan_workspace_bytes(int num_pairs, int num_experts, int row_alignment) -> int",
        &layered_sglang::workspace_bytes);
}

TORCH_LIBRARY_IMPL(layered_sglang, CUDA, m) {
  m.impl("expert_plan", &layered_sglang::expert_plan_on_cuda);
  m.impl("expert_plan_out", &layered_sglang::expert_plan_out_on_cuda);
}
