// Host side of a bf16 grouped GEMM's launch.
#pragma once

#include "experts/grouped_gemm_bf16_sm90.cuh"
#include "experts/persistent_launch.h"
#include "experts/weight_map.h"

namespace layered_sglang::grouped_gemm {

// The consumer lag that was fastest at 4096 tokens of Qwen3-30B-A3B on an H100.
inline GroupedGemmTuning chosen_tuning(const GroupedGemmOptions& options) {
  GroupedGemmTuning tuning = options.tuning;
  if (tuning.consumer_lag < 0) tuning.consumer_lag = options.cluster == 2 ? 1 : 2;
  return tuning;
}

template <bool kGateUp>
cudaError_t launch(const CUtensorMap& weight_map, const CUtensorMap& token_map, KernelArgs args,
                   const GroupedGemmOptions& options, cudaStream_t stream) {
  args.stages = stage_count(args.gemm.num_experts);
  args.tuning = chosen_tuning(options);
  args.weight_policy = weight_policy(options.weights_once);
  PersistentLaunch shape = {kThreads, kSharedBytes};
  shape.cluster = options.cluster;
  shape.multiprocessor_limit = args.tuning.multiprocessors;
  shape.overlap = options.overlap_launch;
  const auto kernel =
      options.cluster == 2 ? grouped_gemm_bf16<kGateUp, 2> : grouped_gemm_bf16<kGateUp, 1>;
  return launch_persistent(kernel, shape, stream, weight_map, token_map, args);
}

}  // namespace layered_sglang::grouped_gemm
