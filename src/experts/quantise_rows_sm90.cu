#include "experts/quantise_rows_sm90.h"

#include "common/bf16_vector.cuh"
#include "common/block_scan.cuh"
#include "common/e4m3_quantise.cuh"
#include "common/sm90_ptx.cuh"

namespace layered_sglang {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = kFp8Block / 8;  // of a group: 8 values each
constexpr int kGroupsPerBlock = kThreads / kLanes;

// Half a warp: one group of 128.
__global__ void __launch_bounds__(kThreads) quantise_rows(QuantiseRowsArgs args) {
  ptx::launch_dependents();
  const int64_t groups = args.rows * (args.columns / kFp8Block);
  const int64_t wanted = static_cast<int64_t>(blockIdx.x) * kGroupsPerBlock + threadIdx.x / kLanes;
  const int64_t group = min(wanted, groups - 1);  // whole warps; the last group is written again
  const int lane = threadIdx.x % kLanes;
  const uint4 loaded = reinterpret_cast<const uint4*>(args.x)[group * kLanes + lane];
  const float2 pairs[4] = {unpack_bf16(loaded.x), unpack_bf16(loaded.y), unpack_bf16(loaded.z),
                           unpack_bf16(loaded.w)};
  float largest = 0.0f;
#pragma unroll
  for (const float2& pair : pairs) {
    largest = fmaxf(largest, fmaxf(fabsf(pair.x), fabsf(pair.y)));
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
  }
  const GroupScale scale = group_scale(largest);
  uint32_t packed[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 low = pairs[2 * i];
    const float2 high = pairs[2 * i + 1];
    packed[i] = to_e4m3(low.x * scale.inverse, low.y * scale.inverse) |
                static_cast<uint32_t>(to_e4m3(high.x * scale.inverse, high.y * scale.inverse))
                    << 16;
  }
  reinterpret_cast<uint2*>(args.values)[group * kLanes + lane] = make_uint2(packed[0], packed[1]);
  if (lane == 0) args.scales[group] = scale.scale;
  // Whoever waits for this kernel has waited for the one before it, too.
  ptx::wait_for_previous_kernels();
}

}  // namespace

cudaError_t quantise_rows_sm90(const QuantiseRowsArgs& args, bool overlap_launch,
                               cudaStream_t stream) {
  const int64_t groups = args.rows * (args.columns / kFp8Block);
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = overlap_launch;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>((groups + kGroupsPerBlock - 1) / kGroupsPerBlock));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, quantise_rows, args);
}

}  // namespace layered_sglang
