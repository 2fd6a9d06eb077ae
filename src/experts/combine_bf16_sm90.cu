#include <algorithm>

#include "experts/combine.cuh"

namespace layered_sglang {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSlotsAtOnce = 8;

// Block (t, c): token t; a thread computes 8 adjacent elements.
__global__ void __launch_bounds__(kMaxThreads) combine(CombineArgs args) {
  const int chunk = args.first_column / 8 + blockIdx.y * blockDim.x + threadIdx.x;
  ptx::wait_for_previous_kernels();
  combine_chunk<kSlotsAtOnce>(args, blockIdx.x, chunk, chunk < args.hidden / 8);
}

}  // namespace

cudaError_t combine_bf16_sm90(const CombineArgs& args, bool overlap_launch, cudaStream_t stream) {
  const int chunks = (args.hidden - args.first_column) / 8;
  const int threads = std::min((chunks + kWarpSize - 1) / kWarpSize * kWarpSize, kMaxThreads);
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = overlap_launch;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.num_tokens, (chunks + threads - 1) / threads);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, combine, args);
}

}  // namespace layered_sglang
