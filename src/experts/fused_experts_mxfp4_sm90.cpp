#include "experts/fused_experts_mxfp4_sm90.h"

#include "experts/combine_bf16_sm90.h"
#include "experts/expert_gemv_mxfp4_sm90.h"
#include "plan/expert_plan_sm90.h"

namespace layered_sglang {
namespace {

constexpr int64_t kRowAlignment = 1;  // the GEMMs take rows as they come

FusedExpertsWorkspace layout_of(const FusedExpertsSizes& sizes) {
  const size_t plan_bytes =
      expert_plan_workspace_bytes(sizes.num_pairs(), sizes.num_experts, kRowAlignment);
  return fused_experts_workspace(sizes, static_cast<int64_t>(plan_bytes));
}

}  // namespace

int64_t fused_experts_mxfp4_workspace_bytes(const FusedExpertsSizes& sizes) {
  return layout_of(sizes).bytes;
}

cudaError_t fused_experts_mxfp4_sm90(const FusedExpertsMxfp4Args& args, FusedExpertsMxfp4Path path,
                                     cudaStream_t stream) {
  const FusedExpertsSizes& sizes = args.sizes;
  if (sizes.num_tokens == 0) return cudaSuccess;
  if (path == FusedExpertsMxfp4Path::kAutomatic) path = choose_mxfp4_path(sizes);
  const FusedExpertsWorkspace at = layout_of(sizes);
  auto* base = static_cast<uint8_t*>(args.workspace);
  auto* intermediate = reinterpret_cast<__nv_bfloat16*>(base + at.intermediate);
  auto* rows = reinterpret_cast<__nv_bfloat16*>(base + at.rows);
  if (path == FusedExpertsMxfp4Path::kGemv) {
    const ExpertGemvMxfp4Args gemv = {
        args.x,       args.w13, args.w2, args.topk_ids,   args.topk_weights,
        intermediate, args.y,   sizes,   args.activation, args.routed_scaling_factor};
    return expert_gemv_mxfp4_sm90(gemv, stream);
  }

  ExpertPlanArgs plan = {};
  plan.topk_ids = args.topk_ids;
  plan.num_pairs = static_cast<int32_t>(sizes.num_pairs());
  plan.num_experts = static_cast<int32_t>(sizes.num_experts);
  plan.row_alignment = kRowAlignment;
  plan.row_capacity = plan.num_pairs;
  plan.expert_offsets = reinterpret_cast<int32_t*>(base + at.expert_offsets);
  plan.expert_counts = reinterpret_cast<int32_t*>(base + at.expert_counts);
  plan.sorted_rows = reinterpret_cast<int32_t*>(base + at.sorted_rows);
  plan.inverse_rows = reinterpret_cast<int32_t*>(base + at.inverse_rows);
  cudaError_t error = expert_plan_sm90(plan, base + at.plan, stream);
  if (error != cudaSuccess) return error;

  GroupedGemmMxfp4Args gemm = {};
  gemm.expert_offsets = plan.expert_offsets;
  gemm.sorted_rows = plan.sorted_rows;
  gemm.num_experts = plan.num_experts;
  gemm.top_k = static_cast<int32_t>(sizes.top_k);
  gemm.hidden = static_cast<int32_t>(sizes.hidden);
  gemm.inter = static_cast<int32_t>(sizes.inter);
  gemm.activation = args.activation;
  GroupedGemmMxfp4Options options;
  options.many_rows = path == FusedExpertsMxfp4Path::kMany;
  options.weights_once = reads_weights_once(sizes);
  error = gate_up_gemm_mxfp4_sm90(gemm, args.x, args.w13, intermediate, options, stream);
  if (error != cudaSuccess) return error;
  error = down_gemm_mxfp4_sm90(gemm, intermediate, args.w2, rows, options, stream);
  if (error != cudaSuccess) return error;

  CombineArgs combine = {};
  combine.rows = rows;
  combine.inverse_rows = plan.inverse_rows;
  combine.topk_weights = args.topk_weights;
  combine.y = args.y;
  combine.num_tokens = static_cast<int32_t>(sizes.num_tokens);
  combine.top_k = gemm.top_k;
  combine.hidden = gemm.hidden;
  combine.routed_scaling_factor = args.routed_scaling_factor;
  return combine_bf16_sm90(combine, options.overlap_launch, stream);
}

}  // namespace layered_sglang
