// The bf16 grouped GEMM's producers: what fills the ring of stages.
#pragma once

#include "experts/grouped_gemm_bf16_tasks.cuh"

namespace layered_sglang::grouped_gemm {

// Half a tile of weights is one box, 128 rows: of w2 adjacent ones, of w13 the gate rows of 64
// neurons and then their up rows, which lie `inter` rows apart. Rows of its first coordinate.
template <bool kGateUp>
__device__ __forceinline__ int box_row(int weight_tile, int half) {
  return (2 * weight_tile + half) * (kGateUp ? kTileWeightRows / 4 : kTileWeightRows / 2);
}

template <bool kGateUp, int kCluster>
__device__ __forceinline__ void load_weights(const CUtensorMap* map, const SharedLayout& shared,
                                             const Task& task, int stage, int k_block,
                                             uint64_t policy) {
  const int column = k_block * kStageDepth;
  const uint32_t barrier = shared.full_barrier(stage);
  if constexpr (kCluster == 1) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ptx::tensor_load_4d(shared.weights(stage) + half * kHalfWeightBytes, map, barrier, column,
                          box_row<kGateUp>(task.weight_tile, half), 0, task.expert, policy);
    }
  } else {
    // Each block loads its half for both.
    const int rank = block_rank<kCluster>();
    ptx::tensor_load_4d_multicast(shared.weights(stage) + rank * kHalfWeightBytes, map, barrier,
                                  column, box_row<kGateUp>(task.weight_tile, rank), 0, task.expert,
                                  0b11, policy);
  }
}

__device__ __forceinline__ int token_boxes(const Task& task) {
  return (task.width + kTokenBoxRows - 1) / kTokenBoxRows;
}

__device__ __forceinline__ void load_tokens(const CUtensorMap* map, const SharedLayout& shared,
                                            const Task& task, int stage, int k_block) {
  for (int box = 0; box < token_boxes(task); ++box) {
    ptx::tensor_load_2d(shared.tokens(stage) + box * kTokenBoxRows * kRowBytes, map,
                        shared.full_barrier(stage), k_block * kStageDepth,
                        task.first_row + box * kTokenBoxRows);
  }
}

// Waits until the gate/up GEMM has stored the expert's rows.
template <int kCluster>
__device__ __forceinline__ void wait_for_rows(const ExpertTable& table, const KernelArgs& args,
                                              int expert) {
  const int tiles = (table[expert + 1].first_tile - table[expert].first_tile) * kCluster;
  while (ptx::load_acquire(args.gemm.stored_parts + expert) < tiles * args.parts_of_tile) {
  }
  // The copy engine reads what ordinary stores wrote.
  ptx::fence_async_proxy_global();
}

// The down GEMM's producer: warp 0. All its lanes walk the tasks, one issues the copies.
template <int kCluster>
__device__ __forceinline__ void run_copy_warp(const CUtensorMap* weight_map,
                                              const CUtensorMap* token_map, const KernelArgs& args,
                                              const SharedLayout& shared,
                                              const ExpertTable& table) {
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  const bool issues = threadIdx.x == 0;
  // The weights do not depend on the gate/up GEMM, so those of the first stages are under way
  // before it has stored the first rows.
  int token_debt = args.stages;
  RingPosition position;
  Task next = {};
  if (first_task<kCluster>() < task_count(table, args))
    next = find_task<kCluster>(table, args, first_task<kCluster>());
  for (int index = first_task<kCluster>(); index < task_count(table, args);
       index += task_step<kCluster>()) {
    const Task task = next;
    if (index + task_step<kCluster>() < task_count(table, args))
      next = find_task<kCluster>(table, args, index + task_step<kCluster>());
    const uint32_t bytes = kWeightBytes + token_boxes(task) * kTokenBoxRows * kRowBytes;
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      if (token_debt == args.stages) {
        const int early = min(args.stages, k_blocks);
        if (issues) {
          for (int i = 0; i < early; ++i) {
            ptx::barrier_arrive_expect_bytes(shared.full_barrier(i), bytes);
            load_weights<false, kCluster>(weight_map, shared, task, i, i, args.weight_policy);
          }
        }
        token_debt = early;
      }
      if (issues) {
        if (token_debt == 0) {
          ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
          ptx::barrier_arrive_expect_bytes(shared.full_barrier(position.stage), bytes);
          load_weights<false, kCluster>(weight_map, shared, task, position.stage, k_block,
                                        args.weight_policy);
        }
        if (k_block == 0) wait_for_rows<kCluster>(table, args, task.expert);
        load_tokens(token_map, shared, task, position.stage, k_block);
      }
      token_debt = max(token_debt - 1, 0);
      position.advance(args.stages);
    }
  }
  // Also without a task: this kernel must not end before the previous one.
  ptx::wait_for_previous_kernels();
}

// Place of a row's 16-byte chunk under the swizzle, in bytes from the first row.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ row % 8) << 4);
}

// The gate/up GEMM's producers: warps 0 ... 3. kRowChunks threads copy a row, 16 bytes each; thread
// 0 also issues the weights' copies.
template <int kCluster>
__device__ __forceinline__ void run_gather_warps(const CUtensorMap* weight_map,
                                                 const KernelArgs& args, const SharedLayout& shared,
                                                 const ExpertTable& table) {
  constexpr int kRowStep = kProducerThreads / kRowChunks;
  constexpr int kRowsPerThread = kMaxTileTokens / kRowStep;
  constexpr int kWarpRows = kWarpSize / kRowChunks;  // of a step
  constexpr int kLoads = (kRowsPerThread * kWarpRows + kWarpSize - 1) / kWarpSize;
  static_assert(kMaxTileTokens % kRowStep == 0, "the last step must not reach the next stage");
  static_assert(kRowStep % 8 == 0, "a thread's rows share one swizzle");
  const int lane = threadIdx.x % kWarpSize;
  const int chunk = threadIdx.x % kRowChunks;
  const int row = threadIdx.x / kRowChunks;
  const int warp_row = row - lane / kRowChunks;
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  const int row_units = args.depth / 8;  // of 16 bytes
  const uint32_t place = swizzled(row, chunk);

  // The pairs of a warp's rows, each loaded by one lane: lane l has those of the row l % kWarpRows
  // in step l / kWarpRows. Rows beyond the tile read its first row once more, and an empty tile,
  // which has none, the first token.
  const auto load_pairs = [&](const Task& task, int (&pairs)[kLoads]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int entry = lane + i * kWarpSize;
      const int entry_row = warp_row + entry % kWarpRows + entry / kWarpRows * kRowStep;
      const int valid_row = entry_row < task.rows ? entry_row : 0;
      pairs[i] = task.rows > 0 ? __ldcg(args.gemm.sorted_rows + task.first_row + valid_row) : 0;
    }
  };

  if (first_task<kCluster>() >= task_count(table, args)) return;
  Task task = find_task<kCluster>(table, args, first_task<kCluster>());
  int pairs[kLoads];
  load_pairs(task, pairs);
  RingPosition position;
  for (int index = first_task<kCluster>(); index < task_count(table, args);
       index += task_step<kCluster>()) {
    const Task current = task;
    const int steps = (current.width + kRowStep - 1) / kRowStep;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      pairs[i] = static_cast<uint32_t>(pairs[i]) / args.gemm.top_k * row_units;
    }
    uint32_t source[kRowsPerThread];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int entry = i * kWarpRows;  // of the warp's first row
      source[i] =
          __shfl_sync(kAllLanes, pairs[entry / kWarpSize], entry % kWarpSize + lane / kRowChunks) +
          chunk;
    }
    // The next task's pairs are on their way while this one's rows are copied.
    if (index + task_step<kCluster>() < task_count(table, args)) {
      task = find_task<kCluster>(table, args, index + task_step<kCluster>());
      load_pairs(task, pairs);
    }
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
      const uint32_t full = shared.full_barrier(position.stage);
      if (threadIdx.x == 0) {
        ptx::barrier_arrive_expect_bytes(full, kWeightBytes);
        load_weights<true, kCluster>(weight_map, shared, current, position.stage, k_block,
                                     args.weight_policy);
      }
      const uint32_t target = shared.tokens(position.stage) + place;
      const auto* x = reinterpret_cast<const uint4*>(args.x + k_block * kStageDepth);
      if ((k_block + 1) * kStageDepth <= args.depth) {
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i) {
          if (i >= steps) break;
          ptx::copy_async_16(target + i * kRowStep * kRowBytes, x + source[i]);
        }
      } else {  // K ends within the stage
        const bool exists = k_block * kStageDepth + chunk * 8 < args.depth;
#pragma unroll
        for (int i = 0; i < kRowsPerThread; ++i) {
          if (i >= steps) break;
          ptx::copy_async_16_or_zero(target + i * kRowStep * kRowBytes,
                                     exists ? static_cast<const void*>(x + source[i]) : args.x,
                                     exists ? 16 : 0);
        }
      }
      ptx::barrier_arrive_after_copies(full);
      position.advance(args.stages);
    }
  }
}

}  // namespace layered_sglang::grouped_gemm
