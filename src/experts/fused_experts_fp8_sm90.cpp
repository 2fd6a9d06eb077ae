#include "experts/fused_experts_fp8_sm90.h"

#include "experts/combine_bf16_sm90.h"
#include "experts/quantise_rows_sm90.h"
#include "plan/expert_plan_sm90.h"

namespace layered_sglang {
namespace {

constexpr int64_t kRowAlignment = 1;  // the GEMMs take rows as they come

FusedExpertsFp8Workspace layout_of(const FusedExpertsSizes& sizes) {
  const size_t plan_bytes =
      expert_plan_workspace_bytes(sizes.num_pairs(), sizes.num_experts, kRowAlignment);
  return fused_experts_fp8_workspace(sizes, static_cast<int64_t>(plan_bytes));
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

  GroupedGemmFp8Options options;
  options.wide_tiles = uses_wide_fp8_tiles(sizes, path);
  options.weights_once = reads_weights_once(sizes);
  // Needs nothing of the plan, so it may overlap it.
  const QuantiseRowsArgs quantise = {args.x, base + at.x,
                                     reinterpret_cast<float*>(base + at.x_scale), sizes.num_tokens,
                                     sizes.hidden};
  error = quantise_rows_sm90(quantise, options.overlap_launch, stream);
  if (error != cudaSuccess) return error;

  GroupedGemmArgs gemm = {};
  gemm.expert_offsets = plan.expert_offsets;
  gemm.sorted_rows = plan.sorted_rows;
  gemm.num_experts = plan.num_experts;
  gemm.num_rows = plan.num_pairs;
  gemm.num_tokens = static_cast<int32_t>(sizes.num_tokens);
  gemm.top_k = static_cast<int32_t>(sizes.top_k);
  gemm.hidden = static_cast<int32_t>(sizes.hidden);
  gemm.inter = static_cast<int32_t>(sizes.inter);
  gemm.activation = args.activation;
  const Fp8Intermediate intermediate = {base + at.intermediate,
                                        reinterpret_cast<float*>(base + at.intermediate_scale),
                                        sizes.num_pairs()};
  auto* rows = reinterpret_cast<__nv_bfloat16*>(base + at.rows);
  error = gate_up_gemm_fp8_sm90(gemm, {quantise.values, quantise.scales}, args.w13, intermediate,
                                options, stream);
  if (error != cudaSuccess) return error;
  error = down_gemm_fp8_sm90(gemm, intermediate, args.w2, rows, options, stream);
  if (error != cudaSuccess) return error;

  CombineArgs combine = {};
  combine.rows = rows;
  combine.inverse_rows = plan.inverse_rows;
  combine.topk_weights = args.topk_weights;
  combine.y = args.y;
  combine.num_tokens = gemm.num_tokens;
  combine.top_k = gemm.top_k;
  combine.hidden = gemm.hidden;
  combine.routed_scaling_factor = args.routed_scaling_factor;
  return combine_bf16_sm90(combine, options.overlap_launch, stream);
}

}  // namespace layered_sglang
