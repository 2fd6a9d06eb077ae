#include "experts/grouped_gemm_mxfp4_launch.cuh"

namespace layered_sglang {

cudaError_t down_gemm_mxfp4_sm90(const GroupedGemmMxfp4Args& args,
                                 const __nv_bfloat16* intermediate, const Mxfp4Matrix& w2,
                                 __nv_bfloat16* out, const GroupedGemmMxfp4Options& options,
                                 cudaStream_t stream) {
  using namespace grouped_gemm_mxfp4;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.weights = w2;
  kernel_args.tokens = intermediate;
  kernel_args.out = out;
  kernel_args.depth = args.inter;
  kernel_args.k_blocks = static_cast<int>(mxfp4_blocks(args.inter));
  kernel_args.row_blocks = static_cast<int>(mxfp4_blocks(args.hidden));
  kernel_args.bias_rows = args.hidden;
  kernel_args.out_columns = args.hidden;
  kernel_args.next_piece = args.next_pieces + 1;
  return launch<false>(kernel_args, options, stream);
}

}  // namespace layered_sglang
