#include "experts/grouped_gemm_bf16_launch.cuh"

namespace layered_sglang {

cudaError_t down_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* intermediate,
                                const __nv_bfloat16* w2, __nv_bfloat16* out,
                                const GroupedGemmOptions& options, cudaStream_t stream) {
  using namespace grouped_gemm;
  CUtensorMap weight_map;
  cudaError_t error =
      make_weight_map(w2, 2, args.num_experts, 1, args.hidden, args.inter, &weight_map);
  if (error != cudaSuccess) return error;
  CUtensorMap token_map;
  error =
      make_tensor_map({intermediate,
                       2,
                       {static_cast<uint64_t>(args.inter), static_cast<uint64_t>(args.num_rows)},
                       {static_cast<uint64_t>(args.inter) * 2},
                       {kStageDepth, kTokenBoxRows}},
                      &token_map);
  if (error != cudaSuccess) return error;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.out = out;
  kernel_args.depth = args.inter;
  kernel_args.out_columns = args.hidden;
  kernel_args.num_weight_tiles = (args.hidden + kTileWeightRows - 1) / kTileWeightRows;
  kernel_args.parts_of_tile =
      (2 * args.inter + kTileWeightRows - 1) / kTileWeightRows * kConsumerWarps;
  return launch<false>(weight_map, token_map, kernel_args, options, stream);
}

}  // namespace layered_sglang
