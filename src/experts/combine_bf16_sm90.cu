#include "experts/combine_bf16_sm90.h"

#include "common/bf16_vector.cuh"
#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"

namespace layered_sglang {
namespace {

constexpr int kThreads = 256;
constexpr int kSlotsAtOnce = 8;  // loads of a thread under way together

// Block (t, c): token t; a thread computes 8 adjacent elements.
__global__ void __launch_bounds__(kThreads) combine(CombineArgs args) {
  const int lane = threadIdx.x % kWarpSize;
  const int chunks = args.hidden / 8;
  const int chunk = blockIdx.y * kThreads + threadIdx.x;
  const int64_t token = blockIdx.x;
  ptx::wait_for_previous_kernels();

  float sum[8] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    // Lane i fetches slot i for the whole warp.
    const bool is_slot = lane < kSlotsAtOnce && first + lane < args.top_k;
    const int64_t slot = token * args.top_k + first + lane;
    const int slot_row = is_slot ? __ldcg(args.inverse_rows + slot) : -1;
    const float slot_weight = is_slot ? args.topk_weights[slot] : 0.0f;
    uint4 value[kSlotsAtOnce];
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      const int row = __shfl_sync(kAllLanes, slot_row, i);
      value[i] = make_uint4(0, 0, 0, 0);
      if (row >= 0 && chunk < chunks) {
        value[i] = load_written(
            reinterpret_cast<const uint4*>(args.rows + static_cast<int64_t>(row) * args.hidden) +
            chunk);
      }
    }
    ptx::keep_loads_above(args.num_tokens > 0);
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      add_scaled(value[i], __shfl_sync(kAllLanes, slot_weight, i), sum);
    }
  }
#pragma unroll
  for (float& element : sum) element *= args.routed_scaling_factor;
  if (chunk < chunks) {
    reinterpret_cast<uint4*>(args.y + token * args.hidden)[chunk] = round_to_bf16(sum);
  }
}

}  // namespace

cudaError_t combine_bf16_sm90(const CombineArgs& args, bool overlap_launch, cudaStream_t stream) {
  const int chunks = args.hidden / 8;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = overlap_launch;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(args.num_tokens, (chunks + kThreads - 1) / kThreads);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, combine, args);
}

}  // namespace layered_sglang
