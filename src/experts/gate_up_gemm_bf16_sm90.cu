#include "experts/grouped_gemm_launch.cuh"

namespace layered_sglang {

cudaError_t gate_up_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* x,
                                   const __nv_bfloat16* w13, __nv_bfloat16* intermediate,
                                   const GroupedGemmOptions& options, cudaStream_t stream) {
  using namespace grouped_gemm;
  CUtensorMap weight_map;
  const cudaError_t error = make_weight_map(w13, args.num_experts, 2, args.inter, args.hidden,
                                            options.tiles.wide, &weight_map);
  if (error != cudaSuccess) return error;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.x = x;
  kernel_args.weights = w13;
  kernel_args.out = intermediate;
  kernel_args.depth = args.hidden;
  kernel_args.out_columns = args.inter;
  kernel_args.num_weight_tiles = weight_tile_count(2 * args.inter, options.tiles.wide);
  kernel_args.stages = stage_count(args.num_experts, options.tiles.wide);
  kernel_args.tuning = chosen_tuning(options);
  kernel_args.prefetch_stages = std::min(kernel_args.tuning.prefetch_stages,
                                         (kernel_args.depth + kStageDepth - 1) / kStageDepth);
  kernel_args.weight_policy = options.weights_once ? kEvictFirst : kEvictNormal;
  return launch_chosen<true>(weight_map, {}, kernel_args, options, stream);
}

}  // namespace layered_sglang
