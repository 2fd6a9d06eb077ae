// The persistent grouped GEMM that both expert projections are instances of.
//
// A task is a tile of weight rows of one expert times a token tile of its rows. There are two
// kinds, by the kernel's kWide:
//   narrow  256 weight rows, 16 ... 192 token rows. Weights are wgmma's M and tokens its N, so an
//           expert with few rows costs little more than reading its weights, and tails waste at
//           most 15 columns;
//   wide    64 token rows for each warpgroup, wgmma's M, and weights are its N: for many rows.
//
// Warps of a block:
//   0 ... 3  producers, which fill a ring of stages: weights with the copy engine, tokens with it,
//            too (the down GEMM, whose rows are in order: warp 0 alone), or gathered row by row
//            with cp.async (the gate/up GEMM: all four);
//   4 ...    warpgroups that share the weight rows (narrow) or the token rows (wide) of a task:
//            wgmma, then the epilogue from registers.
// A stage is 64 of K. Every role walks the same tasks on its own, so none is handed over.
#pragma once

#include <cuda_runtime.h>

#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_bf16_narrow.cuh"
#include "experts/grouped_gemm_bf16_producers.cuh"
#include "experts/grouped_gemm_bf16_wide.cuh"

namespace layered_sglang::grouped_gemm {

// A narrow task by its width.
template <bool kGateUp, int kCluster>
__device__ __forceinline__ void compute_narrow_task(const KernelArgs& args,
                                                    const SharedLayout<false>& shared,
                                                    const Task& task, int group, int& stored_expert,
                                                    RingPosition& position) {
#define LS_CASE(columns)                                                                          \
  case columns / 8:                                                                               \
    compute_task<kGateUp, kCluster, columns>(args, shared, task, group, stored_expert, position); \
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
    LS_CASE(128)
    LS_CASE(136)
    LS_CASE(144)
    LS_CASE(152)
    LS_CASE(160)
#if LAYERED_SGLANG_MAX_TILE_TOKENS > 160
    LS_CASE(168)
    LS_CASE(176)
    LS_CASE(184)
    LS_CASE(192)
#endif
  }
#undef LS_CASE
}

template <bool kGateUp, int kCluster, bool kWide>
__device__ __forceinline__ void run_consumers(const KernelArgs& args,
                                              const SharedLayout<kWide>& shared,
                                              const ExpertTable& table) {
  const int group = threadIdx.x / 128 - 1;
  // The last warpgroup starts late and stays behind: while one is in its epilogue the others keep
  // the tensor cores busy.
  const int lag =
      min(args.tuning.consumer_lag, args.stages - 1) * group / (kConsumerGroups<kWide> - 1);
  if (group > 0 && first_task<kCluster>() < task_count(table, args) && lag > 0 &&
      args.depth > lag * kStageDepth) {
    ptx::barrier_wait(shared.full_barrier(lag), 0);
  }
  RingPosition position;
  // Whose rows the last task stored, if they are yet to be counted; else -1.
  int stored_expert = -1;
  for (int index = first_task<kCluster>(); index < task_count(table, args);
       index += task_step<kCluster>()) {
    const Task task = find_task<kCluster, kWide>(table, args, index);
    if constexpr (kWide) {
      compute_wide_task<kGateUp, kCluster>(args, shared, task, group, stored_expert, position);
    } else {
      compute_narrow_task<kGateUp, kCluster>(args, shared, task, group, stored_expert, position);
    }
  }
  if (kCountsLate<kGateUp, kCluster, kWide>) count_stored_part(args, stored_expert);
}

template <bool kGateUp, int kCluster, bool kWide>
__global__ void __launch_bounds__(kThreads<kWide>, 1)
    grouped_gemm_bf16(const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ TokenMaps token_maps,
                      const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(kStageAlignment) uint8_t shared_memory[];
  const SharedLayout<kWide> shared = {ptx::shared_address(shared_memory)};
  const ExpertTable table = {reinterpret_cast<Expert*>(shared_memory + kBarriers) - 1};

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    if (!kGateUp) {
      for (const CUtensorMap& map : token_maps.map) ptx::prefetch_tensor_map(&map);
    }
    for (int stage = 0; stage < args.stages; ++stage) {
      ptx::barrier_init(shared.full_barrier(stage), kGateUp ? 1 + kProducerThreads : 1);
      ptx::barrier_init(shared.empty_barrier(stage), kConsumerWarps<kWide> * kCluster);
    }
    ptx::barrier_init_fence();
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
  }
  ptx::launch_dependents();
  fill_table<kCluster, kWide>(args.gemm, table);
  if (kCluster > 1) ptx::cluster_sync();  // the other block's barriers are ready, too

  if (threadIdx.x < kProducerThreads) {
    ptx::lower_registers<kProducerRegisters<kWide>>();
    if constexpr (kGateUp) {
      run_gather_warps<kCluster, kWide>(&weight_map, args, shared, table);
    } else if (threadIdx.x < kWarpSize) {
      run_copy_warp<kCluster, kWide>(&weight_map, &token_maps, args, shared, table);
    }
  } else {
    ptx::raise_registers<kConsumerRegisters<kWide>>();
    run_consumers<kGateUp, kCluster, kWide>(args, shared, table);
  }
  // NOTE: a block must not end while the other may still arrive at its barriers.
  if (kCluster > 1) {
    __syncwarp();
    ptx::cluster_sync();
  }
}

}  // namespace layered_sglang::grouped_gemm
