// The persistent grouped GEMM that both expert projections are instances of.
//
// A task is 256 weight rows of one expert times a token tile of 16 ... 192 of its rows. Weights are
// wgmma's M and tokens its N, so a token tile may be narrow: an expert with few rows costs little
// more than reading its weights, and tails waste at most 15 columns.
//
// Warps of a block:
//   0 ... 3  producers, which fill a ring of stages: weights with the copy engine, tokens with it,
//            too (the down GEMM, whose rows are in order: warp 0 alone), or gathered row by row
//            with cp.async (the gate/up GEMM: all four);
//   4 ... 11 two warpgroups, 128 weight rows each: wgmma, then the epilogue from registers.
// A stage is 64 of K. Every role walks the same tasks on its own, so none is handed over.
#pragma once

#include <cuda_runtime.h>

#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_bf16_consumers.cuh"
#include "experts/grouped_gemm_bf16_producers.cuh"

namespace layered_sglang::grouped_gemm {

template <bool kGateUp, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_gemm_bf16(const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ CUtensorMap token_map,
                      const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(kStageAlignment) uint8_t shared_memory[];
  const SharedLayout shared = {ptx::shared_address(shared_memory)};
  const ExpertTable table = {reinterpret_cast<Expert*>(shared_memory + kBarriers) - 1};

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    if (!kGateUp) ptx::prefetch_tensor_map(&token_map);
    for (int stage = 0; stage < args.stages; ++stage) {
      ptx::barrier_init(shared.full_barrier(stage), kGateUp ? 1 + kProducerThreads : 1);
      ptx::barrier_init(shared.empty_barrier(stage), kConsumerWarps * kCluster);
    }
    ptx::barrier_init_fence();
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
  }
  ptx::launch_dependents();
  fill_table<kCluster>(args.gemm, table);
  if (kCluster > 1) ptx::cluster_sync();  // the other block's barriers are ready, too

  if (threadIdx.x < kProducerThreads) {
    ptx::lower_registers<kProducerRegisters>();
    if constexpr (kGateUp) {
      run_gather_warps<kCluster>(&weight_map, args, shared, table);
    } else if (threadIdx.x < kWarpSize) {
      run_copy_warp<kCluster>(&weight_map, &token_map, args, shared, table);
    }
  } else {
    ptx::raise_registers<kConsumerRegisters>();
    run_consumers<kGateUp, kCluster>(args, shared, table);
  }
  // NOTE: a block must not end while the other may still arrive at its barriers.
  if (kCluster > 1) {
    __syncwarp();
    ptx::cluster_sync();
  }
}

}  // namespace layered_sglang::grouped_gemm
