// The persistent grouped GEMM that both MXFP4 expert projections are instances of.
//
// A task is 2 or 4 row blocks of 64 weight rows of one expert times a token tile of 16 ... 144 of
// its rows. Weights are wgmma's M and come from registers, where they are expanded to bf16; tokens
// are its N and come from shared memory.
//
// Warps of a block:
//   0        copies the weights' packed blocks into the ring's stages;
//   2, 3     gather the tokens' rows into them;
//   4 ... 11 two warpgroups, each with half the row blocks: expand, wgmma, epilogue.
// A stage is 64 of K. Every role walks the same tasks on its own, so none is handed over.
#pragma once

#include "common/wgmma_bf16_sm90.cuh"
#include "experts/mxfp4_expand.cuh"
#include "experts/mxfp4_store.cuh"
#include "experts/mxfp4_tasks.cuh"

namespace layered_sglang::grouped_gemm_mxfp4 {

// Warp 0. All its lanes walk the tasks, one issues the copies.
template <bool kMany>
__device__ __forceinline__ void run_weight_warp(const KernelArgs& args, const Layout<kMany>& shared,
                                                const Expert* table) {
  const int tasks = task_count(table, args);
  const size_t row_block_bytes = static_cast<size_t>(args.k_blocks) * kMxfp4BlockBytes;
  RingPosition position;
  for (int index = ptx::block_index(); index < tasks; index += gridDim.x) {
    const Task task = find_task(table, args, index);
    const int first_block = task.weight_tile * Layout<kMany>::kTaskBlocks;
    const int blocks = min(Layout<kMany>::kTaskBlocks, args.row_blocks - first_block);
    const uint8_t* source =
        args.weights.packed +
        (static_cast<size_t>(task.expert) * args.row_blocks + first_block) * row_block_bytes;
    for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
      ptx::barrier_wait(shared.empty(position.stage), position.round ^ 1);
      if (threadIdx.x == 0) {
        const uint32_t full = shared.full(position.stage);
        ptx::barrier_arrive_expect_bytes(full, blocks * kMxfp4BlockBytes);
        for (int block = 0; block < blocks; ++block) {
          ptx::bulk_load(shared.weights(position.stage) + block * kMxfp4BlockBytes,
                         source + block * row_block_bytes, kMxfp4BlockBytes, full,
                         args.weight_policy);
        }
      }
      __syncwarp();
      source += kMxfp4BlockBytes;
      position.advance(Layout<kMany>::kStages);
    }
  }
}

// Warps 2 and 3. kRowChunks threads copy a row, 16 bytes each.
template <bool kGateUp, bool kMany>
__device__ __forceinline__ void run_gather_warps(const KernelArgs& args,
                                                 const Layout<kMany>& shared, const Expert* table) {
  constexpr int kRowStep = kGatherThreads / kRowChunks;
  constexpr int kSteps = Layout<kMany>::kTileTokens / kRowStep;
  static_assert(kRowStep == 8, "a thread's rows share one swizzle");
  const int thread = threadIdx.x - 64;
  const int chunk = thread % kRowChunks;
  const int row = thread / kRowChunks;
  const int row_units = args.depth / 8;  // of 16 bytes
  const uint32_t place = row * kRowBytes + ((chunk ^ row) << 4);
  const int tasks = task_count(table, args);
  // The down GEMM's rows are the gate/up GEMM's results; its weights are under way by now.
  if (!kGateUp) ptx::wait_for_previous_kernels();

  RingPosition position;
  for (int index = ptx::block_index(); index < tasks; index += gridDim.x) {
    const Task task = find_task(table, args, index);
    // Only rows that exist: what is left in the others' place gives columns that are not stored.
    const int steps = (task.rows - row + kRowStep - 1) / kRowStep;
    uint32_t source[kSteps];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      source[i] = task.first_row + row + i * kRowStep;
      if (kGateUp) {
        const int32_t* pair = args.gemm.sorted_rows + source[i];
        source[i] = i < steps ? static_cast<uint32_t>(__ldcg(pair)) : 0;
      }
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (kGateUp) source[i] /= args.gemm.top_k;
      source[i] = source[i] * row_units + chunk;
    }
    for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
      ptx::barrier_wait(shared.empty(position.stage), position.round ^ 1);
      const uint32_t target = shared.tokens(position.stage) + place;
      const auto* tokens = reinterpret_cast<const uint4*>(args.tokens + k_block * kMxfp4BlockDepth);
      // K may end within the stage.
      const bool exists = k_block * kMxfp4BlockDepth + chunk * 8 < args.depth;
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (i >= steps) break;
        ptx::copy_async_16_or_zero(
            target + i * kRowStep * kRowBytes,
            exists ? static_cast<const void*>(tokens + source[i]) : args.tokens, exists ? 16 : 0);
      }
      ptx::barrier_arrive_after_copies(shared.full(position.stage));
      position.advance(Layout<kMany>::kStages);
    }
  }
}

// A thread's share of a warpgroup's row blocks in a stage, as it lies in shared memory.
template <int kBlocks>
struct PackedShare {
  uint4 words[kBlocks];  // one for each 16 of K
  uint32_t scales[kBlocks];

  // `blocks`: the first row block's address.
  __device__ __forceinline__ void load(uint32_t blocks) {
    const int thread = threadIdx.x % 128;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint32_t block = blocks + b * kMxfp4BlockBytes;
      words[b] = ptx::load_shared_16(block + thread * 16);
      scales[b] = ptx::load_shared_word(block + kMxfp4ValueBytes + thread / 4 * 4);
    }
  }

  // Of half the stage, as wgmma's A registers: [row block][16 of K].
  __device__ __forceinline__ void expand(int half, uint32_t (&a)[kBlocks][2][4]) const {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const uint32_t factors = mxfp4_factors(scales[b], half);
      expand_mxfp4(half == 0 ? words[b].x : words[b].z, factors, a[b][0]);
      expand_mxfp4(half == 0 ? words[b].y : words[b].w, factors, a[b][1]);
    }
  }
};

// The products that read these registers have been waited for; until then nothing else may be in
// them.
template <int kBlocks>
__device__ __forceinline__ void keep_until_here(const uint32_t (&a)[kBlocks][2][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks * 8; ++i) asm volatile("" ::"r"(a[i / 8][i / 4 % 2][i % 4]));
}

// Starts the products of half a stage.
template <int kBlocks, int kColumns>
__device__ __forceinline__ void multiply(uint32_t tokens, int half,
                                         const uint32_t (&a)[kBlocks][2][4],
                                         float (&sums)[kBlocks][kColumns / 2]) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint64_t b_descriptor =
        ptx::operand_descriptor<kRowBytes, kGroupBytes>(tokens / 16 + (2 * half + k) * 2);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) wgmma_bf16<kColumns>(sums[b], a[b][k], b_descriptor);
  }
  ptx::wgmma_commit();
}

// A warpgroup's share of one task.
template <bool kGateUp, bool kMany, int kColumns>
__device__ __forceinline__ void compute_task(const KernelArgs& args, const Layout<kMany>& shared,
                                             const Task& task, int group, RingPosition& position) {
  constexpr int kBlocks = Layout<kMany>::kBlocks;
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int first_block = (2 * task.weight_tile + group) * kBlocks;
  float sums[kBlocks][kColumns / 2];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const float2 bias = load_bias<kGateUp>(args, task.expert, first_block + b, warp, lane);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) sums[b][i] = i % 4 < 2 ? bias.x : bias.y;
  }

  // A half of a stage has one scale a row. While the products of one half are under way, the
  // weights of the next are expanded.
  const uint32_t share = group * kBlocks * kMxfp4BlockBytes;  // of a stage's weights
  PackedShare<kBlocks> packed;
  uint32_t first[kBlocks][2][4];
  ptx::barrier_wait(shared.full(position.stage), position.round);
  packed.load(shared.weights(position.stage) + share);
  packed.expand(0, first);
#pragma unroll 1
  for (int k_block = 0; k_block < args.k_blocks; ++k_block) {
    // NOTE: the gather's writes are ordinary ones to wgmma, and the barrier alone does not order
    // those.
    ptx::fence_async_proxy();
    multiply<kBlocks, kColumns>(shared.tokens(position.stage), 0, first, sums);
    uint32_t second[kBlocks][2][4];
    packed.expand(1, second);
    multiply<kBlocks, kColumns>(shared.tokens(position.stage), 1, second, sums);
    const int stage = position.stage;
    position.advance(Layout<kMany>::kStages);
    ptx::wgmma_wait<1>();
    keep_until_here(first);
    if (k_block + 1 < args.k_blocks) {
      ptx::barrier_wait(shared.full(position.stage), position.round);
      packed.load(shared.weights(position.stage) + share);
      packed.expand(0, first);
    }
    // NOTE: none under way where the loop turns: ptxas would count the registers that they read in
    // every case of the switch at once, find too few, and wait for each product.
    ptx::wgmma_wait<0>();
    keep_until_here(second);
    if (lane == 0) ptx::barrier_arrive(shared.empty(stage));
  }
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    store_block<kGateUp, kColumns>(args, task, sums[b], first_block + b, warp,
                                   shared.transpose(4 * group + warp));
  }
}

template <bool kGateUp, bool kMany>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const Layout<kMany>& shared,
                                              const Expert* table) {
  const int group = threadIdx.x / 128 - 1;
  const int tasks = task_count(table, args);
  RingPosition position;
  for (int index = ptx::block_index(); index < tasks; index += gridDim.x) {
    const Task task = find_task(table, args, index);
#define LS_CASE(columns)                                                        \
  case columns / 16:                                                            \
    compute_task<kGateUp, kMany, columns>(args, shared, task, group, position); \
    break;
    if constexpr (!kMany) {
      switch (task.width / 16) {
        LS_CASE(16)
        LS_CASE(32)
        LS_CASE(48)
        LS_CASE(64)
      }
    } else {
      switch (task.width / 16) {
        LS_CASE(16)
        LS_CASE(32)
        LS_CASE(48)
        LS_CASE(64)
        LS_CASE(80)
        LS_CASE(96)
        LS_CASE(112)
        LS_CASE(128)
        LS_CASE(144)
      }
    }
#undef LS_CASE
  }
}

template <bool kGateUp, bool kMany>
__global__ void __launch_bounds__(kThreads, Layout<kMany>::kPerMultiprocessor)
    grouped_gemm_mxfp4(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(1024) uint8_t shared_memory[];
  const Layout<kMany> shared = {ptx::shared_address(shared_memory)};
  auto* table = reinterpret_cast<Expert*>(shared_memory + Layout<kMany>::kTable);

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Layout<kMany>::kStages; ++stage) {
      ptx::barrier_init(shared.full(stage), 1 + kGatherThreads);
      ptx::barrier_init(shared.empty(stage), kConsumerWarps);
    }
    ptx::barrier_init_fence();
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) ptx::wait_for_previous_kernels();
  ptx::launch_dependents();
  fill_table<kMany>(args.gemm, table);

  if (threadIdx.x < 128) {
    ptx::lower_registers<Layout<kMany>::kProducerRegisters>();
    if (threadIdx.x < kWarpSize) {
      run_weight_warp<kMany>(args, shared, table);
    } else if (threadIdx.x >= 64) {
      run_gather_warps<kGateUp, kMany>(args, shared, table);
    }
  } else {
    ptx::raise_registers<Layout<kMany>::kConsumerRegisters>();
    run_consumers<kGateUp, kMany>(args, shared, table);
  }
}

}  // namespace layered_sglang::grouped_gemm_mxfp4
