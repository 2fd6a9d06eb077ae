#include "experts/fused_experts_mxfp4_sm90.h"

#include "experts/expert_gemv_mxfp4_sm90.h"
#include "experts/layer_steps.h"

namespace layered_sglang {
namespace {

FusedExpertsWorkspace layout_of(const FusedExpertsSizes& sizes) {
  return fused_experts_workspace(sizes, plan_bytes(sizes));
}

Mxfp4Tasks tasks_of(FusedExpertsMxfp4Path path) {
  if (path == FusedExpertsMxfp4Path::kStream) return Mxfp4Tasks::kStream;
  return path == FusedExpertsMxfp4Path::kMany ? Mxfp4Tasks::kMany : Mxfp4Tasks::kFew;
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

  ExpertPlanArgs plan = plan_args(args, at.plan);
  plan.cleared_counts = reinterpret_cast<int32_t*>(base + at.stored_parts);
  cudaError_t error = expert_plan_sm90(plan, base + at.plan.own, stream);
  if (error != cudaSuccess) return error;

  auto gemm = gemm_args<GroupedGemmMxfp4Args>(args, plan);
  gemm.next_pieces = plan.cleared_counts;
  GroupedGemmMxfp4Options options;
  options.tasks = tasks_of(path);
  options.weights_once = reads_weights_once(sizes);
  error = gate_up_gemm_mxfp4_sm90(gemm, args.x, args.w13, intermediate, options, stream);
  if (error != cudaSuccess) return error;
  error = down_gemm_mxfp4_sm90(gemm, intermediate, args.w2, rows, options, stream);
  if (error != cudaSuccess) return error;

  return combine_bf16_sm90(combine_args(args, plan, rows), options.overlap_launch, stream);
}

}  // namespace layered_sglang
