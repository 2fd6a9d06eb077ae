#include "experts/grouped_gemm_fp8_launch.cuh"

namespace layered_sglang {

cudaError_t gate_up_gemm_fp8_sm90(const GroupedGemmArgs& args, const Fp8Matrix& x,
                                  const Fp8Matrix& w13, const Fp8Intermediate& intermediate,
                                  const GroupedGemmFp8Options& options, cudaStream_t stream) {
  using namespace grouped_gemm_fp8;
  CUtensorMap weight_map;
  const cudaError_t error =
      make_weight_map(w13.values, 1, args.num_experts, 2, args.inter, args.hidden, &weight_map);
  if (error != cudaSuccess) return error;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.x = x.values;
  kernel_args.x_scale = x.scales;
  kernel_args.weight_scale = w13.scales;
  kernel_args.neurons = intermediate.values;
  kernel_args.token_scale = intermediate.scales;
  kernel_args.token_scale_stride = intermediate.scale_stride;
  kernel_args.k_blocks = args.hidden / kStageDepth;
  kernel_args.out_columns = args.inter;
  kernel_args.num_weight_tiles = args.inter / kFp8Block;
  kernel_args.scale_rows = 2 * args.inter / kFp8Block;
  // The gather takes no tensor map.
  return launch<true>(weight_map, weight_map, kernel_args, options, stream);
}

}  // namespace layered_sglang
