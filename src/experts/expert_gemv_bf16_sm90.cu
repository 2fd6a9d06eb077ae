#include "experts/expert_gemv_bf16_sm90.h"

#include "common/bf16_vector.cuh"
#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "experts/activation.cuh"

namespace layered_sglang {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowLoads = 4;    // 16-byte loads of each weight row under way in a lane
constexpr int kDownLoads = 12;  // of a lane, over the slots' rows

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  return value;
}

__device__ __forceinline__ bool is_expert(int id, int num_experts) {
  return static_cast<unsigned>(id) < static_cast<unsigned>(num_experts);
}

// A warp: one neuron of one pair, its gate and its up row.
__global__ void __launch_bounds__(kThreads, 6) gate_up_gemv(ExpertGemvArgs args) {
  ptx::launch_dependents();
  const int lane = threadIdx.x % kWarpSize;
  const int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int pair = static_cast<int>(job / args.inter);
  const int neuron = static_cast<int>(job % args.inter);
  if (pair >= args.num_tokens * args.top_k) return;
  const int expert = args.topk_ids[pair];
  if (!is_expert(expert, args.num_experts)) return;  // the down kernel skips the slot

  const int chunks = args.hidden / 8;
  const int64_t gate_row = static_cast<int64_t>(expert) * 2 * args.inter + neuron;
  const uint4* gate_weights = reinterpret_cast<const uint4*>(args.w13) + gate_row * chunks;
  const uint4* up_weights = gate_weights + static_cast<int64_t>(args.inter) * chunks;
  const uint4* x =
      reinterpret_cast<const uint4*>(args.x) + static_cast<int64_t>(pair / args.top_k) * chunks;
  float gate = 0.0f;
  float up = 0.0f;
  for (int first = lane; first < chunks; first += kRowLoads * kWarpSize) {
    uint4 gate_part[kRowLoads];
    uint4 up_part[kRowLoads];
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int chunk = first + i * kWarpSize;
      gate_part[i] = up_part[i] = make_uint4(0, 0, 0, 0);
      if (chunk < chunks) {
        gate_part[i] = load_streaming(gate_weights + chunk);
        up_part[i] = load_streaming(up_weights + chunk);
      }
    }
    ptx::keep_loads_above(args.num_tokens > 0);
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const int chunk = first + i * kWarpSize;
      uint4 part = make_uint4(0, 0, 0, 0);
      if (chunk < chunks) part = x[chunk];
      gate = add_dot(gate_part[i], part, gate);
      up = add_dot(up_part[i], part, up);
    }
  }
  gate = warp_sum(gate);
  up = warp_sum(up);
  if (lane == 0) {
    args.intermediate[static_cast<int64_t>(pair) * args.inter + neuron] =
        __float2bfloat16_rn(activate(gate, up, args.activation));
  }
}

// A warp: one output of one token. The weight rows of all its slots are one sequence of chunks, of
// which the first are under way before the gate/up kernel has ended.
__global__ void __launch_bounds__(kThreads) down_gemv(ExpertGemvArgs args) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t job = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  const int token = static_cast<int>(job / args.hidden);
  const int output = static_cast<int>(job % args.hidden);
  if (token >= args.num_tokens) {
    ptx::wait_for_previous_kernels();
    return;
  }
  const int chunks = args.inter / 8;
  const int steps = (chunks + kWarpSize - 1) / kWarpSize;  // of a lane in one row
  const int total = steps * args.top_k;
  // Lane i holds slot i for the whole warp.
  const int64_t my_slot = static_cast<int64_t>(token) * args.top_k + lane;
  const int slot_expert = lane < args.top_k ? args.topk_ids[my_slot] : -1;
  const float slot_weight = lane < args.top_k ? args.topk_weights[my_slot] : 0.0f;
  const uint4* intermediate = reinterpret_cast<const uint4*>(args.intermediate) +
                              static_cast<int64_t>(token) * args.top_k * chunks;
  float sum = 0.0f;
  int slot = 0;
  int step = 0;
  for (int first = 0; first < total; first += kDownLoads) {
    uint4 part[kDownLoads];
    int source[kDownLoads];  // chunk of the token's intermediate rows, or -1
    float scale[kDownLoads];
#pragma unroll
    for (int i = 0; i < kDownLoads; ++i) {
      const int chunk = step * kWarpSize + lane;
      const int expert = __shfl_sync(kAllLanes, slot_expert, slot % kWarpSize);
      scale[i] = __shfl_sync(kAllLanes, slot_weight, slot % kWarpSize);
      part[i] = make_uint4(0, 0, 0, 0);
      source[i] = -1;
      if (slot < args.top_k && chunk < chunks && is_expert(expert, args.num_experts)) {
        const int64_t row = static_cast<int64_t>(expert) * args.hidden + output;
        part[i] = load_streaming(reinterpret_cast<const uint4*>(args.w2) + row * chunks + chunk);
        source[i] = slot * chunks + chunk;
      }
      if (++step == steps) {
        step = 0;
        ++slot;
      }
    }
    if (first == 0) ptx::wait_for_previous_kernels();
#pragma unroll
    for (int i = 0; i < kDownLoads; ++i) {
      // NOTE: loaded only now, as it is written by the kernel that this one overlaps.
      uint4 value = make_uint4(0, 0, 0, 0);
      if (source[i] >= 0) value = load_written(intermediate + source[i]);
      sum = fmaf(scale[i], add_dot(part[i], value, 0.0f), sum);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    args.y[static_cast<int64_t>(token) * args.hidden + output] =
        __float2bfloat16_rn(sum * args.routed_scaling_factor);
  }
}

unsigned blocks_for(int64_t warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }

}  // namespace

cudaError_t expert_gemv_bf16_sm90(const ExpertGemvArgs& args, cudaStream_t stream) {
  const int64_t pairs = static_cast<int64_t>(args.num_tokens) * args.top_k;
  gate_up_gemv<<<blocks_for(pairs * args.inter), kThreads, 0, stream>>>(args);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks_for(static_cast<int64_t>(args.num_tokens) * args.hidden));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, down_gemv, args);
}

}  // namespace layered_sglang
