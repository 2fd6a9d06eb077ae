// Host side of a grouped GEMM's launch: tensor maps, grid, launch attributes.
#pragma once

#include <algorithm>

#include "common/tensor_map.h"
#include "experts/grouped_gemm_bf16_sm90.cuh"

namespace layered_sglang::grouped_gemm {

// What the copy engine tells the L2 of weights: keep as usual, or evict first.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000;

// Weights [experts, parts, rows, depth]. A box is half of a task's weight rows: of one part, or
// (w13 of narrow tasks) as many of each (box_row).
inline cudaError_t make_weight_map(const __nv_bfloat16* weights, int experts, int parts, int rows,
                                   int depth, bool wide, CUtensorMap* map) {
  const int box_parts = wide ? 1 : parts;
  const int box_rows = (wide ? kWeightRows<true> : kWeightRows<false>) / 2 / box_parts;
  const auto row_bytes = static_cast<uint64_t>(depth) * 2;
  const auto part_bytes = row_bytes * rows;
  return make_tensor_map(
      {weights,
       4,
       {static_cast<uint64_t>(depth), static_cast<uint64_t>(rows), static_cast<uint64_t>(parts),
        static_cast<uint64_t>(experts)},
       {row_bytes, part_bytes, part_bytes * parts},
       {kStageDepth, static_cast<uint32_t>(box_rows), static_cast<uint32_t>(box_parts), 1}},
      map);
}

// The consumer lag that was fastest at 4096 tokens of Qwen3-30B-A3B on an H100.
inline GroupedGemmTuning chosen_tuning(const GroupedGemmOptions& options) {
  GroupedGemmTuning tuning = options.tuning;
  if (tuning.consumer_lag < 0) tuning.consumer_lag = options.tiles.cluster == 2 ? 1 : 2;
  if (tuning.prefetch_stages < 0) tuning.prefetch_stages = 0;
  return tuning;
}

// Weight tiles of an expert that has `rows` weight rows.
inline int weight_tile_count(int rows, bool wide) {
  const int tile = wide ? kWeightRows<true> : kWeightRows<false>;
  return (rows + tile - 1) / tile;
}

inline cudaError_t multiprocessor_count(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

template <bool kGateUp, int kCluster, bool kWide>
cudaError_t launch(const CUtensorMap& weight_map, const TokenMaps& token_maps,
                   const KernelArgs& args, bool overlap_launch, cudaStream_t stream) {
  const auto kernel = grouped_gemm_bf16<kGateUp, kCluster, kWide>;
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
  config.blockDim = dim3(kThreads<kWide>);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, weight_map, token_maps, args);
}

// Each in a file of its own, as they take long to compile.
#define LS_LAUNCH(gate_up, cluster, wide)                                                   \
  template cudaError_t launch<gate_up, cluster, wide>(const CUtensorMap&, const TokenMaps&, \
                                                      const KernelArgs&, bool, cudaStream_t)
extern LS_LAUNCH(true, 1, false);
extern LS_LAUNCH(true, 2, false);
extern LS_LAUNCH(false, 1, false);
extern LS_LAUNCH(false, 2, false);
extern LS_LAUNCH(true, 1, true);
extern LS_LAUNCH(true, 2, true);
extern LS_LAUNCH(false, 1, true);
extern LS_LAUNCH(false, 2, true);

// The kernel of these options; the gate/up GEMM's gather takes no token maps.
template <bool kGateUp>
cudaError_t launch_chosen(const CUtensorMap& weight_map, const TokenMaps& token_maps,
                          const KernelArgs& args, const GroupedGemmOptions& options,
                          cudaStream_t stream) {
  const auto run =
      options.tiles.cluster == 2
          ? (options.tiles.wide ? launch<kGateUp, 2, true> : launch<kGateUp, 2, false>)
          : (options.tiles.wide ? launch<kGateUp, 1, true> : launch<kGateUp, 1, false>);
  return run(weight_map, token_maps, args, options.overlap_launch, stream);
}

}  // namespace layered_sglang::grouped_gemm
