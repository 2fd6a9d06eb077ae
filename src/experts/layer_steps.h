// What the experts of every format do before and after their two GEMMs: the plan and the combine.
// `Args` is a format's FusedExperts...Args.
#pragma once

#include "experts/combine_bf16_sm90.h"
#include "experts/fused_experts_layout.h"
#include "plan/expert_plan_sm90.h"

namespace layered_sglang {

inline constexpr int64_t kPlanRowAlignment = 1;  // the GEMMs take rows as they come

// Bytes of the plan's own workspace.
inline int64_t plan_bytes(const FusedExpertsSizes& sizes) {
  return static_cast<int64_t>(
      expert_plan_workspace_bytes(sizes.num_pairs(), sizes.num_experts, kPlanRowAlignment));
}

template <typename Args>
ExpertPlanArgs plan_args(const Args& args, const PlanWorkspace& at) {
  auto* base = static_cast<uint8_t*>(args.workspace);
  ExpertPlanArgs plan = {};
  plan.topk_ids = args.topk_ids;
  plan.num_pairs = static_cast<int32_t>(args.sizes.num_pairs());
  plan.num_experts = static_cast<int32_t>(args.sizes.num_experts);
  plan.row_alignment = kPlanRowAlignment;
  plan.row_capacity = plan.num_pairs;
  plan.expert_offsets = reinterpret_cast<int32_t*>(base + at.expert_offsets);
  plan.expert_counts = reinterpret_cast<int32_t*>(base + at.expert_counts);
  plan.sorted_rows = reinterpret_cast<int32_t*>(base + at.sorted_rows);
  plan.inverse_rows = reinterpret_cast<int32_t*>(base + at.inverse_rows);
  return plan;
}

// What the formats' GEMM arguments have in common.
template <typename GemmArgs, typename Args>
GemmArgs gemm_args(const Args& args, const ExpertPlanArgs& plan) {
  GemmArgs gemm = {};
  gemm.expert_offsets = plan.expert_offsets;
  gemm.sorted_rows = plan.sorted_rows;
  gemm.num_experts = plan.num_experts;
  gemm.top_k = static_cast<int32_t>(args.sizes.top_k);
  gemm.hidden = static_cast<int32_t>(args.sizes.hidden);
  gemm.inter = static_cast<int32_t>(args.sizes.inter);
  gemm.activation = args.activation;
  return gemm;
}

// rows: the down GEMM's.
template <typename Args>
CombineArgs combine_args(const Args& args, const ExpertPlanArgs& plan, const __nv_bfloat16* rows) {
  CombineArgs combine = {};
  combine.rows = rows;
  combine.inverse_rows = plan.inverse_rows;
  combine.topk_weights = args.topk_weights;
  combine.y = args.y;
  combine.num_tokens = static_cast<int32_t>(args.sizes.num_tokens);
  combine.top_k = static_cast<int32_t>(args.sizes.top_k);
  combine.hidden = static_cast<int32_t>(args.sizes.hidden);
  combine.routed_scaling_factor = args.routed_scaling_factor;
  return combine;
}

}  // namespace layered_sglang
