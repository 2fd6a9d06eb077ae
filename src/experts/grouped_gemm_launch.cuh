// Host side of a grouped GEMM's launch: tensor maps, grid, launch attributes.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "experts/grouped_gemm_bf16_sm90.cuh"

namespace layered_sglang::grouped_gemm {

// What the copy engine tells the L2 of weights: keep as usual, or evict first.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000;

// Weights [experts, parts, rows, depth]. A box has as many rows of each part, 128 in all.
inline cudaError_t make_weight_map(const __nv_bfloat16* weights, int experts, int parts, int rows,
                                   int depth, CUtensorMap* map) {
  const auto row_bytes = static_cast<uint64_t>(depth) * 2;
  const auto part_bytes = row_bytes * rows;
  return make_tensor_map({weights,
                          4,
                          {static_cast<uint64_t>(depth), static_cast<uint64_t>(rows),
                           static_cast<uint64_t>(parts), static_cast<uint64_t>(experts)},
                          {row_bytes, part_bytes, part_bytes * parts},
                          {kStageDepth, static_cast<uint32_t>(kTileWeightRows / 2 / parts),
                           static_cast<uint32_t>(parts), 1}},
                         map);
}

// The consumer lag that was fastest at 4096 tokens of Qwen3-30B-A3B on an H100.
inline GroupedGemmTuning chosen_tuning(const GroupedGemmOptions& options) {
  GroupedGemmTuning tuning = options.tuning;
  if (tuning.consumer_lag < 0) tuning.consumer_lag = options.cluster == 2 ? 1 : 2;
  return tuning;
}

inline cudaError_t multiprocessor_count(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

template <bool kGateUp, int kCluster>
cudaError_t launch(const CUtensorMap& weight_map, const CUtensorMap& token_map,
                   const KernelArgs& args, bool overlap_launch, cudaStream_t stream) {
  const auto kernel = grouped_gemm_bf16<kGateUp, kCluster>;
  int multiprocessors = 0;
  cudaError_t error = multiprocessor_count(&multiprocessors);
  if (error != cudaSuccess) return error;
  if (args.tuning.multiprocessors > 0) {
    multiprocessors = std::min(multiprocessors, std::max(args.tuning.multiprocessors, kCluster));
  }
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = overlap_launch;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = kCluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(multiprocessors / kCluster * kCluster);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, weight_map, token_map, args);
}

}  // namespace layered_sglang::grouped_gemm
