#include "experts/grouped_gemm_mxfp4_launch.cuh"

namespace layered_sglang {

cudaError_t gate_up_gemm_mxfp4_sm90(const GroupedGemmMxfp4Args& args, const __nv_bfloat16* x,
                                    const Mxfp4Matrix& w13, __nv_bfloat16* intermediate,
                                    const GroupedGemmMxfp4Options& options, cudaStream_t stream) {
  using namespace grouped_gemm_mxfp4;
  KernelArgs kernel_args = {};
  kernel_args.gemm = args;
  kernel_args.weights = w13;
  kernel_args.tokens = x;
  kernel_args.out = intermediate;
  kernel_args.depth = args.hidden;
  kernel_args.k_blocks = static_cast<int>(mxfp4_blocks(args.hidden));
  kernel_args.row_blocks = static_cast<int>(mxfp4_blocks(2 * int64_t{args.inter}));
  kernel_args.bias_rows = 2 * args.inter;
  kernel_args.out_columns = args.inter;
  kernel_args.next_piece = args.next_pieces;
  return launch<true>(kernel_args, options, stream);
}

}  // namespace layered_sglang
