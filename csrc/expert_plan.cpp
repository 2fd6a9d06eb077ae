// expert_plan: schema, checks and the CPU implementation.
#include "expert_plan.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "plan/expert_plan_cpu.h"
#include "tensor_check.h"

namespace layered_sglang {

int64_t check_expert_plan_input(const at::Tensor& topk_ids, int64_t num_experts,
                                int64_t row_alignment) {
  TORCH_CHECK_VALUE(
      topk_ids.scalar_type() == at::kInt && topk_ids.dim() == 2 && topk_ids.is_contiguous(),
      "topk_ids: expected contiguous int32 [tokens, top_k], got ", describe(topk_ids));
  TORCH_CHECK_VALUE(num_experts >= 1 && num_experts <= kMaxPlanExperts,
                    "num_experts: expected 1 ... ", kMaxPlanExperts, ", got ", num_experts);
  TORCH_CHECK_VALUE(row_alignment >= 1 && row_alignment <= kMaxPlanRowAlignment,
                    "row_alignment: expected 1 ... ", kMaxPlanRowAlignment, ", got ",
                    row_alignment);
  TORCH_CHECK_VALUE(topk_ids.numel() <= kMaxPlanPairs, "topk_ids: expected at most ", kMaxPlanPairs,
                    " elements, got ", describe(topk_ids));
  return padded_row_capacity(topk_ids.numel(), num_experts, row_alignment);
}

ExpertPlanTensors empty_expert_plan(const at::Tensor& topk_ids, int64_t num_experts,
                                    int64_t row_capacity) {
  const at::TensorOptions options = topk_ids.options();
  return {at::empty({num_experts + 1}, options), at::empty({num_experts}, options),
          at::empty({row_capacity}, options), at::empty(topk_ids.sizes(), options)};
}

ExpertPlanArgs expert_plan_args(const at::Tensor& topk_ids, int64_t num_experts,
                                int64_t row_alignment, const at::Tensor& expert_offsets,
                                const at::Tensor& expert_counts, const at::Tensor& sorted_rows,
                                const at::Tensor& inverse_rows) {
  const int64_t row_capacity = padded_row_capacity(topk_ids.numel(), num_experts, row_alignment);
  const at::Device device = topk_ids.device();
  check_buffer("expert_offsets", expert_offsets, at::kInt, {num_experts + 1}, device);
  check_buffer("expert_counts", expert_counts, at::kInt, {num_experts}, device);
  check_buffer("sorted_rows", sorted_rows, at::kInt, {row_capacity}, device);
  check_buffer("inverse_rows", inverse_rows, at::kInt, topk_ids.sizes().vec(), device);
  return {topk_ids.const_data_ptr<int32_t>(),        static_cast<int32_t>(topk_ids.numel()),
          static_cast<int32_t>(num_experts),         static_cast<int32_t>(row_alignment),
          static_cast<int32_t>(row_capacity),        expert_offsets.mutable_data_ptr<int32_t>(),
          expert_counts.mutable_data_ptr<int32_t>(), sorted_rows.mutable_data_ptr<int32_t>(),
          inverse_rows.mutable_data_ptr<int32_t>(),  /*cleared_counts=*/nullptr};
}

namespace {

void expert_plan_out_on_cpu(const at::Tensor& topk_ids, int64_t num_experts, int64_t row_alignment,
                            const at::Tensor& expert_offsets, const at::Tensor& expert_counts,
                            const at::Tensor& sorted_rows, const at::Tensor& inverse_rows,
                            const at::Tensor& /*workspace*/) {
  check_expert_plan_input(topk_ids, num_experts, row_alignment);
  expert_plan_cpu(expert_plan_args(topk_ids, num_experts, row_alignment, expert_offsets,
                                   expert_counts, sorted_rows, inverse_rows));
}

ExpertPlanTensors expert_plan_on_cpu(const at::Tensor& topk_ids, int64_t num_experts,
                                     int64_t row_alignment) {
  const int64_t row_capacity = check_expert_plan_input(topk_ids, num_experts, row_alignment);
  ExpertPlanTensors plan = empty_expert_plan(topk_ids, num_experts, row_capacity);
  const auto& [expert_offsets, expert_counts, sorted_rows, inverse_rows] = plan;
  expert_plan_cpu(expert_plan_args(topk_ids, num_experts, row_alignment, expert_offsets,
                                   expert_counts, sorted_rows, inverse_rows));
  return plan;
}

}  // namespace
}  // namespace layered_sglang

TORCH_LIBRARY_FRAGMENT(layered_sglang, m) {
  m.def(
      "expert_plan(Tensor topk_ids, int num_experts, int row_alignment=1)"
      " -> (Tensor expert_offsets, Tensor expert_counts, Tensor sorted_rows, Tensor inverse_rows)");
  // The same into the caller's buffers. workspace: uint8, at least expert_plan_workspace_bytes.
  m.def(
      "expert_plan_out(Tensor topk_ids, int num_experts, int row_alignment,"
      " Tensor(a!) expert_offsets, Tensor(b!) expert_counts, Tensor(c!) sorted_rows,"
      " Tensor(d!) inverse_rows, Tensor(e!) workspace) -> ()");
}

TORCH_LIBRARY_IMPL(layered_sglang, CPU, m) {
  m.impl("expert_plan", &layered_sglang::expert_plan_on_cpu);
  m.impl("expert_plan_out", &layered_sglang::expert_plan_out_on_cpu);
}
