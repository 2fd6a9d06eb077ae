// Host side of an MXFP4 grouped GEMM's launch.
#pragma once

#include "experts/grouped_gemm_mxfp4_sm90.cuh"
#include "experts/persistent_launch.h"

namespace layered_sglang::grouped_gemm_mxfp4 {

template <bool kGateUp, bool kMany>
cudaError_t launch_shape(KernelArgs args, const GroupedGemmMxfp4Options& options,
                         cudaStream_t stream) {
  constexpr int kTaskBlocks = Layout<kMany>::kTaskBlocks;
  args.weight_policy = weight_policy(options.weights_once);
  args.weight_tiles = (args.row_blocks + kTaskBlocks - 1) / kTaskBlocks;
  PersistentLaunch shape = {kThreads, Layout<kMany>::kBytes};
  shape.blocks_per_multiprocessor = Layout<kMany>::kPerMultiprocessor;
  shape.overlap = options.overlap_launch;
  return launch_persistent(grouped_gemm_mxfp4<kGateUp, kMany>, shape, stream, args);
}

template <bool kGateUp>
cudaError_t launch(const KernelArgs& args, const GroupedGemmMxfp4Options& options,
                   cudaStream_t stream) {
  return options.many_rows ? launch_shape<kGateUp, true>(args, options, stream)
                           : launch_shape<kGateUp, false>(args, options, stream);
}

}  // namespace layered_sglang::grouped_gemm_mxfp4
