#include "experts/grouped_gemm_fp8_launch.cuh"

namespace layered_sglang {

cudaError_t down_gemm_fp8_sm90(const GroupedGemmArgs& args, const Fp8Intermediate& intermediate,
                               const Fp8Matrix& w2, __nv_bfloat16* out,
                               const GroupedGemmFp8Options& options, cudaStream_t stream) {
  using namespace grouped_gemm_fp8;
  const auto inter = static_cast<uint64_t>(args.inter);
  const auto rows = static_cast<uint64_t>(args.num_rows);
  CUtensorMap weight_map;
  cudaError_t error =
      make_weight_map(w2.values, 1, args.num_experts, 1, args.hidden, args.inter, &weight_map);
  if (error != cudaSuccess) return error;
  CUtensorMap token_map;
  error = make_tensor_map({intermediate.values,
                           2,
                           {inter, rows},
                           {inter},
                           {kStageDepth, kTokenBoxRows},
                           TensorElement::kByte},
                          &token_map);
  if (error != cudaSuccess) return error;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.weight_scale = w2.scales;
  kernel_args.token_scale = intermediate.scales;
  kernel_args.token_scale_stride = intermediate.scale_stride;
  kernel_args.out = out;
  kernel_args.k_blocks = args.inter / kStageDepth;
  kernel_args.out_columns = args.hidden;
  kernel_args.num_weight_tiles = (args.hidden + kTileWeightRows - 1) / kTileWeightRows;
  kernel_args.scale_rows = args.hidden / kFp8Block;
  return launch<false>(weight_map, token_map, kernel_args, options, stream);
}

}  // namespace layered_sglang
