// Host side of a persistent kernel's launch: its grid and launch attributes.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace layered_sglang {

// What the copy engine tells the L2 of weights: to evict them first where one task alone reads
// them, or to keep them as usual.
inline constexpr uint64_t weight_policy(bool weights_once) {
  return weights_once ? 0x12F0000000000000 : 0x1000000000000000;
}

struct PersistentLaunch {
  int threads;  // of a block
  int shared_bytes;
  int blocks_per_multiprocessor = 1;
  int cluster = 1;               // blocks of a cluster
  int multiprocessor_limit = 0;  // the grid fills no more of them; 0: all
  bool overlap = true;           // may start while the previous kernel in the stream still runs
};

// A grid that fills the current device's multiprocessors, in whole clusters.
template <typename... Parameters>
cudaError_t launch_persistent(void (*kernel)(Parameters...), const PersistentLaunch& shape,
                              cudaStream_t stream, const Parameters&... arguments) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  int multiprocessors = 0;
  error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  if (shape.multiprocessor_limit > 0) {
    multiprocessors =
        std::min(multiprocessors, std::max(shape.multiprocessor_limit, shape.cluster));
  }
  error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes);
  if (error != cudaSuccess) return error;
  if (shape.blocks_per_multiprocessor > 1) {
    // Else the L1 cache could take what the other blocks need.
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared);
    if (error != cudaSuccess) return error;
  }

  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = shape.overlap;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = shape.cluster;
  attributes[1].val.clusterDim.y = 1;
  attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim =
      dim3(multiprocessors / shape.cluster * shape.cluster * shape.blocks_per_multiprocessor);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace layered_sglang
