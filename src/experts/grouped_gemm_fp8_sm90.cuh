// The persistent grouped GEMM in block-scaled fp8 that both expert projections are instances of.
//
// It has the shape of the bf16 one (grouped_gemm_bf16_sm90.cuh): a task is 256 weight rows of one
// expert times a token tile of 16 ... 120 of its rows, weights are wgmma's M and tokens its N, and
// warps 0 ... 3 fill a ring of stages for two warpgroups of 128 weight rows each. What differs:
//   - a stage is 128 of K, which is one block of scales: its products are summed by the tensor
//     cores and then added, times their scales, to the sums in fp32 (`promote`);
//   - the scales of a stage's rows and weights come into shared memory with it;
//   - the gate/up GEMM's 256 weight rows are one block of 128 neurons, so the two warpgroups
//     together know a row's largest neuron and store the row quantised.
#pragma once

#include <cuda_runtime.h>

#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_fp8_narrow.cuh"
#include "experts/grouped_gemm_fp8_producers.cuh"
#include "experts/grouped_gemm_fp8_wide.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

template <bool kGateUp, bool kWide>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const SharedLayout& shared,
                                              const TileTable& table) {
  const int group = threadIdx.x / 128 - 1;
  RingPosition position;
  for (int index = blockIdx.x; index < task_count(table, args); index += gridDim.x) {
    const Task task = find_task<kWide>(table, args, index);
    if constexpr (kWide) {
      compute_wide_task<kGateUp>(args, shared, task, group, position);
    } else {
#define LS_CASE(columns)                                                               \
  case columns / 8:                                                                    \
    compute_narrow_task<kGateUp, columns>(args, shared, task, group, index, position); \
    break;
      switch (task.width / 8) {
        LS_CASE(16)
        LS_CASE(32)
        LS_CASE(48)
        LS_CASE(64)
        LS_CASE(72)
        LS_CASE(80)
        LS_CASE(88)
        LS_CASE(96)
        LS_CASE(104)
        LS_CASE(112)
        LS_CASE(120)
      }
#undef LS_CASE
    }
  }
}

template <bool kGateUp, bool kWide>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_gemm_fp8(const __grid_constant__ CUtensorMap weight_map,
                     const __grid_constant__ CUtensorMap token_map,
                     const __grid_constant__ KernelArgs args) {
  extern __shared__ uint8_t shared_memory[];
  uint8_t* aligned = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(shared_memory) + 1023) & ~uintptr_t{1023});
  const SharedLayout shared = {ptx::shared_address(aligned)};
  TileTable table;
  table.tile_end = reinterpret_cast<int*>(aligned + kTileTable);
  table.offset = table.tile_end + args.gemm.num_experts;
  table.count = table.offset + args.gemm.num_experts;

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    if (!kGateUp) ptx::prefetch_tensor_map(&token_map);
    for (int stage = 0; stage < kStages; ++stage) {
      // The bytes' arrival, and those of the threads that copy with cp.async.
      ptx::barrier_init(shared.full_barrier(stage), 1 + (kGateUp ? kProducerThreads : kWarpSize));
      ptx::barrier_init(shared.empty_barrier(stage), kConsumerWarps);
    }
    ptx::barrier_init_fence();
  }
  if (kGateUp && threadIdx.x < kLargestBuffers * kStageRows) {
    ptx::store_shared_4(shared.epilogue() + kLargestOffset + 4 * threadIdx.x, 0.0f);
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
    ptx::launch_dependents();
  }
  fill_table<kWide>(args.gemm, table);
  if (threadIdx.x < kProducerThreads) {
    ptx::lower_registers<kProducerRegisters<kGateUp>>();
    if constexpr (kGateUp) {
      run_gather_warps<kWide>(&weight_map, args, shared, table);
    } else if (threadIdx.x < kWarpSize) {
      run_copy_warp<kWide>(&weight_map, &token_map, args, shared, table);
    }
  } else {
    ptx::raise_registers<kConsumerRegisters<kGateUp>>();
    run_consumers<kGateUp, kWide>(args, shared, table);
  }
}

static_assert(kLargestBuffers * kStageRows <= kThreads, "cleared by one thread each");

}  // namespace layered_sglang::grouped_gemm_fp8
