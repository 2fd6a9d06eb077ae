// What the expert plan's CPU and CUDA implementations share: checks and the kernels' arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "plan/expert_plan_layout.h"

namespace layered_sglang {

// expert_offsets [E + 1], expert_counts [E], sorted_rows [row_capacity], inverse_rows like topk_ids
using ExpertPlanTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Checks the input and the limits; raises ValueError. Returns the row capacity.
int64_t check_expert_plan_input(const at::Tensor& topk_ids, int64_t num_experts,
                                int64_t row_alignment);

ExpertPlanTensors empty_expert_plan(const at::Tensor& topk_ids, int64_t num_experts,
                                    int64_t row_capacity);

// Checks the outputs against the (checked) input; raises ValueError.
ExpertPlanArgs expert_plan_args(const at::Tensor& topk_ids, int64_t num_experts,
                                int64_t row_alignment, const at::Tensor& expert_offsets,
                                const at::Tensor& expert_counts, const at::Tensor& sorted_rows,
                                const at::Tensor& inverse_rows);

}  // namespace layered_sglang
