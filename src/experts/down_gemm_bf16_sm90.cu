#include "experts/grouped_gemm_launch.cuh"

namespace layered_sglang {

cudaError_t down_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* intermediate,
                                const __nv_bfloat16* w2, __nv_bfloat16* out,
                                const GroupedGemmOptions& options, cudaStream_t stream) {
  using namespace grouped_gemm;
  CUtensorMap weight_map;
  cudaError_t error = make_weight_map(w2, args.num_experts, 1, args.hidden, args.inter,
                                      options.tiles.wide, &weight_map);
  if (error != cudaSuccess) return error;
  TokenMaps token_maps;
  for (int i = 0; i < kTokenMaps; ++i) {
    error =
        make_tensor_map({intermediate,
                         2,
                         {static_cast<uint64_t>(args.inter), static_cast<uint64_t>(args.num_rows)},
                         {static_cast<uint64_t>(args.inter) * 2},
                         {kStageDepth, static_cast<uint32_t>(token_box_rows(i))}},
                        &token_maps.map[i]);
    if (error != cudaSuccess) return error;
  }
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.weights = w2;
  kernel_args.out = out;
  kernel_args.depth = args.inter;
  kernel_args.out_columns = args.hidden;
  kernel_args.num_weight_tiles = weight_tile_count(args.hidden, options.tiles.wide);
  kernel_args.gate_up_tiles = options.gate_up_tiles;
  kernel_args.parts_of_tile =
      weight_tile_count(2 * args.inter, options.gate_up_tiles.wide) *
      (options.gate_up_tiles.wide ? kConsumerWarps<true> : kConsumerWarps<false>);
  kernel_args.stages = stage_count(args.num_experts, options.tiles.wide);
  kernel_args.tuning = chosen_tuning(options);
  kernel_args.prefetch_stages = std::min(kernel_args.tuning.prefetch_stages,
                                         (kernel_args.depth + kStageDepth - 1) / kStageDepth);
  kernel_args.weight_policy = options.weights_once ? kEvictFirst : kEvictNormal;
  return launch_chosen<false>(weight_map, token_maps, kernel_args, options, stream);
}

}  // namespace layered_sglang
