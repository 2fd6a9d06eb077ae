// The narrow tasks of the fp8 grouped GEMM: weights are wgmma's M, tokens its N.
#pragma once

#include "common/e4m3_quantise.cuh"
#include "common/wgmma_e4m3_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_fp8_tasks.cuh"
#include "experts/store_rows.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

// Adds the products of one block of K to the sums: times the rows' scales and the weights'.
template <int kColumns>
__device__ __forceinline__ void promote(float (&sums)[kColumns / 2],
                                        const float (&products)[kColumns / 2],
                                        uint32_t token_scales, float weight_scale) {
  const uint32_t first = token_scales + threadIdx.x % 4 * 8;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const float2 scale = ptx::load_shared_8(first + j * 32);
    const float even = scale.x * weight_scale;
    const float odd = scale.y * weight_scale;
    sums[4 * j] = fmaf(products[4 * j], even, sums[4 * j]);
    sums[4 * j + 1] = fmaf(products[4 * j + 1], odd, sums[4 * j + 1]);
    sums[4 * j + 2] = fmaf(products[4 * j + 2], even, sums[4 * j + 2]);
    sums[4 * j + 3] = fmaf(products[4 * j + 3], odd, sums[4 * j + 3]);
  }
}

// A task's main loop for a warpgroup's 128 weight rows, half of them (`parity`) at a time. See
// store_rows and store_neurons: which of the rows are whose.
template <bool kGateUp, int kColumns>
struct MainLoop {
  static constexpr int kGroupStride = kGateUp ? kGroupBytes : 2 * kGroupBytes;
  static constexpr int kSecond = (kGateUp ? kHalfWeightBytes / 2 : kGroupBytes) / 16;
  // Both halves' products fit into registers: one is added up while the other is computed.
  static constexpr bool kBothHalves = kColumns <= 88;

  const SharedLayout& shared;
  int group;

  template <int kParity>
  __device__ __forceinline__ void multiply(float (&products)[kColumns / 2], int stage) const {
    // In units of 16 bytes, as descriptors hold them.
    const uint32_t weights =
        (shared.weights(stage) + group * kHalfWeightBytes) / 16 + kParity * kSecond;
    const uint32_t tokens = shared.tokens(stage) / 16;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStageDepth / 32; ++k) {
      const uint64_t a = ptx::operand_descriptor<kRowBytes, kGroupStride>(weights + k * 2);
      const uint64_t b = ptx::operand_descriptor<kRowBytes, kGroupBytes>(tokens + k * 2);
      if (k == 0) {
        wgmma_e4m3<kColumns, false>(products, a, b);
      } else {
        wgmma_e4m3<kColumns, true>(products, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  template <int kParity>
  __device__ __forceinline__ void add(float (&sums)[kColumns / 2],
                                      const float (&products)[kColumns / 2], int stage) const {
    const int which = kGateUp ? kParity : group;
    const float weight_scale = ptx::load_shared_4(shared.weight_scales(stage) + 4 * which);
    promote<kColumns>(sums, products, shared.token_scales(stage), weight_scale);
  }

  __device__ __forceinline__ void run(float (&sums)[2][kColumns / 2], int k_blocks,
                                      RingPosition& position) const {
    if constexpr (kBothHalves) {
      float products[2][kColumns / 2];
      for (int k_block = 0; k_block < k_blocks; ++k_block) {
        wait_full<kGateUp>(shared, position);
        multiply<0>(products[0], position.stage);
        multiply<1>(products[1], position.stage);
        ptx::wgmma_wait<1>();
        add<0>(sums[0], products[0], position.stage);
        ptx::wgmma_wait<0>();
        add<1>(sums[1], products[1], position.stage);
        release(shared, position.stage);
        position.advance(kStages);
      }
    } else {
      // The other warpgroup keeps the tensor cores busy while this one adds.
      float products[kColumns / 2];
      for (int k_block = 0; k_block < k_blocks; ++k_block) {
        wait_full<kGateUp>(shared, position);
        multiply<0>(products, position.stage);
        ptx::wgmma_wait<0>();
        add<0>(sums[0], products, position.stage);
        multiply<1>(products, position.stage);
        ptx::wgmma_wait<0>();
        add<1>(sums[1], products, position.stage);
        release(shared, position.stage);
        position.advance(kStages);
      }
    }
  }
};

// Stores a gate/up task's neurons, quantised. A warpgroup's sums[0] has the gate rows and sums[1]
// the up rows of the same 64 neurons, of the 128 that share a scale; both warpgroups meet to find
// it. `slot` counts the tasks modulo kLargestBuffers.
template <int kColumns>
__device__ __forceinline__ void store_neurons(const KernelArgs& args, const SharedLayout& shared,
                                              const Task& task, float (&sums)[2][kColumns / 2],
                                              int group, int slot) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int thread = threadIdx.x % 128;
  const uint32_t largest = shared.epilogue() + kLargestOffset;
  const uint32_t inverse = shared.epilogue() + kInverseOffset + group * kTokenScaleBytes;
  const uint32_t neurons = shared.epilogue() + group * kNeuronBytes;
  const Activation activation = args.gemm.activation;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[0][4 * j + i] = activate(sums[0][4 * j + i], sums[1][4 * j + i], activation);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = fmaxf(fabsf(sums[0][4 * j + i]), fabsf(sums[0][4 * j + 2 + i]));
#pragma unroll
      for (int distance = 4; distance < kWarpSize; distance *= 2) {
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
      }
      // Floats of one sign are in the order of their bits.
      if (lane < 4) {
        ptx::max_shared(largest + slot * kTokenScaleBytes + (8 * j + 2 * lane + i) * 4,
                        __float_as_uint(most));
      }
    }
  }
  ptx::named_barrier_sync(kConsumersBarrier, kConsumerWarps * kWarpSize);
  if (group == 0) {
    // NOTE: the next task but one's, which nobody fills before the next meeting, and which was last
    // read before this one. All of it: that task may be wider than this one.
    const int after_next = slot == 0 ? kLargestBuffers - 1 : slot - 1;
    ptx::store_shared_4(largest + after_next * kTokenScaleBytes + 4 * thread, 0.0f);
  }
  if (thread < kColumns) {
    const GroupScale scale =
        group_scale(ptx::load_shared_4(largest + slot * kTokenScaleBytes + 4 * thread));
    ptx::store_shared_4(inverse + 4 * thread, scale.inverse);
    if (group == 0 && thread < task.rows) {
      args.token_scale[task.weight_tile * args.token_scale_stride + task.first_row + thread] =
          scale.scale;
    }
  }
  ptx::named_barrier_sync(kWarpgroupBarrier + group, 128);
  // The lane's neurons of columns 8j + 2 * (lane % 4) and the next: 16 * warp + lane / 4, and 8 on.
  const uint32_t write_at = neurons + lane % 4 * 2 * kNeuronRowBytes + warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const float2 by = ptx::load_shared_8(inverse + j * 32 + lane % 4 * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair =
          to_e4m3(sums[0][4 * j + 2 * half] * by.x, sums[0][4 * j + 2 * half + 1] * by.y);
      const uint32_t at = write_at + j * 8 * kNeuronRowBytes + half * 8;
      ptx::store_shared_1(at, pair);
      ptx::store_shared_1(at + kNeuronRowBytes, pair >> 8);
    }
  }
  ptx::named_barrier_sync(kWarpgroupBarrier + group, 128);
  const int chunk = thread % 4;
  const int column = task.weight_tile * kFp8Block + group * 64 + chunk * 16;
  uint8_t* out = args.neurons + static_cast<int64_t>(task.first_row) * args.out_columns + column;
  for (int row = thread / 4; row < task.rows; row += 32) {
    *reinterpret_cast<uint4*>(out + static_cast<int64_t>(row) * args.out_columns) =
        ptx::load_shared_16(neurons + row * kNeuronRowBytes + chunk * 16);
  }
}

// Stores a down task's rows. Of a warpgroup's 128 weight rows, sums[0] has the even 8-row groups
// and sums[1] the odd ones.
template <int kColumns>
__device__ __forceinline__ void store_rows(const KernelArgs& args, const SharedLayout& shared,
                                           const Task& task, const float (&sums)[2][kColumns / 2],
                                           int group) {
  const int warp = threadIdx.x / kWarpSize % 4;
  const int column = task.weight_tile * kTileWeightRows + group * kTileWeightRows / 2 + warp * 32;
  store_warp_rows<kTransposeBytes, kColumns>(
      args, task, column, sums, shared.epilogue() + (4 * group + warp) * 2 * kTransposeBytes);
}

// A warpgroup's share of one task: 128 weight rows.
template <bool kGateUp, int kColumns>
__device__ __forceinline__ void compute_narrow_task(const KernelArgs& args,
                                                    const SharedLayout& shared, const Task& task,
                                                    int group, int index, RingPosition& position) {
  float sums[2][kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
  MainLoop<kGateUp, kColumns>{shared, group}.run(sums, args.k_blocks, position);
  if constexpr (kGateUp) {
    const int round = index / static_cast<int>(gridDim.x);
    store_neurons<kColumns>(args, shared, task, sums, group, round % kLargestBuffers);
  } else {
    store_rows<kColumns>(args, shared, task, sums, group);
  }
}

}  // namespace layered_sglang::grouped_gemm_fp8
