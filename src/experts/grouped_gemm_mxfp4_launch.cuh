// Host side of an MXFP4 grouped GEMM's launch.
#pragma once

#include "experts/grouped_gemm_mxfp4_sm90.cuh"
#include "experts/persistent_launch.h"
#include "experts/stream_gemm_mxfp4_sm90.cuh"

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
cudaError_t launch_stream(KernelArgs args, const GroupedGemmMxfp4Options& options,
                          cudaStream_t stream) {
  if (args.k_blocks > kMxfp4StreamBlocks) return cudaErrorInvalidValue;
  args.weight_policy = weight_policy(options.weights_once);
  PersistentLaunch shape = {stream_gemm_mxfp4::kThreads, stream_gemm_mxfp4::kSharedBytes};
  shape.overlap = options.overlap_launch;
  return launch_persistent(stream_gemm_mxfp4::stream_gemm_mxfp4<kGateUp>, shape, stream, args);
}

template <bool kGateUp>
cudaError_t launch(const KernelArgs& args, const GroupedGemmMxfp4Options& options,
                   cudaStream_t stream) {
  switch (options.tasks) {
    case Mxfp4Tasks::kStream:
      return launch_stream<kGateUp>(args, options, stream);
    case Mxfp4Tasks::kFew:
      return launch_shape<kGateUp, false>(args, options, stream);
    case Mxfp4Tasks::kMany:
      return launch_shape<kGateUp, true>(args, options, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace layered_sglang::grouped_gemm_mxfp4
