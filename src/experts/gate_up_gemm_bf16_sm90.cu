#include "experts/grouped_gemm_bf16_launch.cuh"

namespace layered_sglang {

cudaError_t gate_up_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* x,
                                   const __nv_bfloat16* w13, __nv_bfloat16* intermediate,
                                   const GroupedGemmOptions& options, cudaStream_t stream) {
  using namespace grouped_gemm;
  const int weight_rows = 2 * args.inter;
  CUtensorMap weight_map;
  const cudaError_t error =
      make_weight_map(w13, 2, args.num_experts, 2, args.inter, args.hidden, &weight_map);
  if (error != cudaSuccess) return error;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.x = x;
  kernel_args.out = intermediate;
  kernel_args.depth = args.hidden;
  kernel_args.out_columns = args.inter;
  kernel_args.num_weight_tiles = (weight_rows + kTileWeightRows - 1) / kTileWeightRows;
  // The gather takes no tensor map.
  return launch<true>(weight_map, weight_map, kernel_args, options, stream);
}

}  // namespace layered_sglang
