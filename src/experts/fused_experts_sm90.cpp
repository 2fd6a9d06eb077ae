#include "experts/fused_experts_sm90.h"

#include "experts/expert_gemv_bf16_sm90.h"
#include "experts/layer_steps.h"

namespace layered_sglang {
namespace {

FusedExpertsWorkspace layout_of(const FusedExpertsSizes& sizes) {
  return fused_experts_workspace(sizes, plan_bytes(sizes));
}

ExpertGemvArgs gemv_args(const FusedExpertsArgs& args, __nv_bfloat16* intermediate) {
  ExpertGemvArgs gemv = {};
  gemv.x = args.x;
  gemv.w13 = args.w13;
  gemv.w2 = args.w2;
  gemv.topk_ids = args.topk_ids;
  gemv.topk_weights = args.topk_weights;
  gemv.intermediate = intermediate;
  gemv.y = args.y;
  gemv.num_tokens = static_cast<int32_t>(args.sizes.num_tokens);
  gemv.top_k = static_cast<int32_t>(args.sizes.top_k);
  gemv.num_experts = static_cast<int32_t>(args.sizes.num_experts);
  gemv.hidden = static_cast<int32_t>(args.sizes.hidden);
  gemv.inter = static_cast<int32_t>(args.sizes.inter);
  gemv.activation = args.activation;
  gemv.routed_scaling_factor = args.routed_scaling_factor;
  return gemv;
}

}  // namespace

int64_t fused_experts_workspace_bytes(const FusedExpertsSizes& sizes) {
  return layout_of(sizes).bytes;
}

cudaError_t fused_experts_sm90(const FusedExpertsArgs& args, FusedExpertsPath path,
                               cudaStream_t stream) {
  const FusedExpertsSizes& sizes = args.sizes;
  if (sizes.num_tokens == 0) return cudaSuccess;
  if (path == FusedExpertsPath::kAutomatic) path = choose_fused_experts_path(sizes);

  const FusedExpertsWorkspace at = layout_of(sizes);
  auto* base = static_cast<uint8_t*>(args.workspace);
  auto* intermediate = reinterpret_cast<__nv_bfloat16*>(base + at.intermediate);
  auto* rows = reinterpret_cast<__nv_bfloat16*>(base + at.rows);
  if (path == FusedExpertsPath::kGemv) {
    return expert_gemv_bf16_sm90(gemv_args(args, intermediate), stream);
  }

  ExpertPlanArgs plan = plan_args(args, at.plan);
  plan.cleared_counts = reinterpret_cast<int32_t*>(base + at.stored_parts);
  cudaError_t error = expert_plan_sm90(plan, base + at.plan.own, stream);
  if (error != cudaSuccess) return error;

  auto gemm = gemm_args<GroupedGemmArgs>(args, plan);
  gemm.stored_parts = plan.cleared_counts;
  gemm.num_rows = plan.num_pairs;
  GroupedGemmOptions options;
  options.tuning = args.tuning;
  options.cluster = path == FusedExpertsPath::kGroupedGemmPairs ? 2 : 1;
  options.weights_once = reads_weights_once(sizes);
  error = gate_up_gemm_bf16_sm90(gemm, args.x, args.w13, intermediate, options, stream);
  if (error != cudaSuccess) return error;
  error = down_gemm_bf16_sm90(gemm, intermediate, args.w2, rows, options, stream);
  if (error != cudaSuccess) return error;

  return combine_bf16_sm90(combine_args(args, plan, rows), options.overlap_launch, stream);
}

}  // namespace layered_sglang
