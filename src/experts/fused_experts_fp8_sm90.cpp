#include "experts/fused_experts_fp8_sm90.h"

#include "experts/layer_steps.h"
#include "experts/quantise_rows_sm90.h"

namespace layered_sglang {
namespace {

FusedExpertsFp8Workspace layout_of(const FusedExpertsSizes& sizes) {
  return fused_experts_fp8_workspace(sizes, plan_bytes(sizes));
}

}  // namespace

int64_t fused_experts_fp8_workspace_bytes(const FusedExpertsSizes& sizes) {
  return layout_of(sizes).bytes;
}

cudaError_t fused_experts_fp8_sm90(const FusedExpertsFp8Args& args, FusedExpertsFp8Path path,
                                   cudaStream_t stream) {
  const FusedExpertsSizes& sizes = args.sizes;
  if (sizes.num_tokens == 0) return cudaSuccess;
  const FusedExpertsFp8Workspace at = layout_of(sizes);
  auto* base = static_cast<uint8_t*>(args.workspace);

  const ExpertPlanArgs plan = plan_args(args, at.plan);
  cudaError_t error = expert_plan_sm90(plan, base + at.plan.own, stream);
  if (error != cudaSuccess) return error;

  GroupedGemmFp8Options options;
  options.wide_tiles = uses_wide_fp8_tiles(sizes, path);
  options.weights_once = reads_weights_once(sizes);
  // Needs nothing of the plan, so it may overlap it.
  const QuantiseRowsArgs quantise = {args.x, base + at.x,
                                     reinterpret_cast<float*>(base + at.x_scale), sizes.num_tokens,
                                     sizes.hidden};
  error = quantise_rows_sm90(quantise, options.overlap_launch, stream);
  if (error != cudaSuccess) return error;

  auto gemm = gemm_args<GroupedGemmArgs>(args, plan);
  gemm.num_rows = plan.num_pairs;
  const Fp8Intermediate intermediate = {base + at.intermediate,
                                        reinterpret_cast<float*>(base + at.intermediate_scale),
                                        sizes.num_pairs()};
  auto* rows = reinterpret_cast<__nv_bfloat16*>(base + at.rows);
  error = gate_up_gemm_fp8_sm90(gemm, {quantise.values, quantise.scales}, args.w13, intermediate,
                                options, stream);
  if (error != cudaSuccess) return error;
  error = down_gemm_fp8_sm90(gemm, intermediate, args.w2, rows, options, stream);
  if (error != cudaSuccess) return error;

  return combine_bf16_sm90(combine_args(args, plan, rows), options.overlap_launch, stream);
}

}  // namespace layered_sglang
