// Host side of an fp8 grouped GEMM's launch: tensor maps, grid, launch attributes.
#pragma once

#include "common/tensor_map.h"
#include "experts/grouped_gemm_fp8_sm90.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

// What the copy engine tells the L2 of weights: keep as usual, or evict first.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12F0000000000000;

// Weights [experts, parts, rows, depth]. A box has as many rows of each part, 128 in all.
inline cudaError_t make_weight_map(const uint8_t* weights, int experts, int parts, int rows,
                                   int depth, CUtensorMap* map) {
  const auto row_bytes = static_cast<uint64_t>(depth);
  const auto part_bytes = row_bytes * rows;
  return make_tensor_map({weights,
                          4,
                          {row_bytes, static_cast<uint64_t>(rows), static_cast<uint64_t>(parts),
                           static_cast<uint64_t>(experts)},
                          {row_bytes, part_bytes, part_bytes * parts},
                          {kStageDepth, static_cast<uint32_t>(kTileWeightRows / 2 / parts),
                           static_cast<uint32_t>(parts), 1},
                          TensorElement::kByte},
                         map);
}

template <bool kGateUp, bool kWide>
cudaError_t launch(const CUtensorMap& weight_map, const CUtensorMap& token_map,
                   const KernelArgs& args, bool overlap_launch, cudaStream_t stream) {
  const auto kernel = grouped_gemm_fp8<kGateUp, kWide>;
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  int multiprocessors = 0;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int bytes = shared_bytes(args.gemm.num_experts);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = overlap_launch;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(multiprocessors);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, weight_map, token_map, args);
}

}  // namespace layered_sglang::grouped_gemm_fp8
