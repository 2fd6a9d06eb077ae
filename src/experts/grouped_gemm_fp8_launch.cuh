// Host side of an fp8 grouped GEMM's launch.
#pragma once

#include "experts/grouped_gemm_fp8_sm90.cuh"
#include "experts/persistent_launch.h"
#include "experts/weight_map.h"

namespace layered_sglang::grouped_gemm_fp8 {

template <bool kGateUp>
cudaError_t launch(const CUtensorMap& weight_map, const CUtensorMap& token_map, KernelArgs args,
                   const GroupedGemmFp8Options& options, cudaStream_t stream) {
  args.weight_policy = weight_policy(options.weights_once);
  PersistentLaunch shape = {kThreads, shared_bytes(args.gemm.num_experts)};
  shape.overlap = options.overlap_launch;
  const auto kernel =
      options.wide_tiles ? grouped_gemm_fp8<kGateUp, true> : grouped_gemm_fp8<kGateUp, false>;
  return launch_persistent(kernel, shape, stream, weight_map, token_map, args);
}

}  // namespace layered_sglang::grouped_gemm_fp8
