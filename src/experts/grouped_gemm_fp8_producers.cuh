// The fp8 grouped GEMM's producers: what fills the ring of stages.
#pragma once

#include "experts/grouped_gemm_fp8_tasks.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

// Half a tile of weights is one box, 128 rows: of w2 adjacent ones, of w13 the gate rows of 64
// neurons and then their up rows, which lie `inter` rows apart. Rows of its first coordinate.
template <bool kGateUp>
__device__ __forceinline__ void load_weights(const CUtensorMap* map, const SharedLayout& shared,
                                             const Task& task, int stage, int k_block,
                                             uint64_t policy) {
  constexpr int kBoxRows = kGateUp ? kTileWeightRows / 4 : kTileWeightRows / 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    ptx::tensor_load_4d(shared.weights(stage) + half * kHalfWeightBytes, map,
                        shared.full_barrier(stage), k_block * kStageDepth,
                        (2 * task.weight_tile + half) * kBoxRows, 0, task.expert, policy);
  }
}

// Copies weight scale `which` (0 or 1) of a stage.
template <bool kGateUp>
__device__ __forceinline__ void load_weight_scale(const KernelArgs& args,
                                                  const SharedLayout& shared, const Task& task,
                                                  int stage, int k_block, int which) {
  // w13: the tile's gate block, and its up block half of the rows further on. w2: two blocks, of
  // which the last tile may have one only.
  const int block = kGateUp ? task.weight_tile + which * args.num_weight_tiles
                            : min(2 * task.weight_tile + which, args.scale_rows - 1);
  const int64_t row = static_cast<int64_t>(task.expert) * args.scale_rows + block;
  ptx::copy_async_4(shared.weight_scales(stage) + 4 * which,
                    args.weight_scale + row * args.k_blocks + k_block);
}

__device__ __forceinline__ int token_boxes(const Task& task) {
  return (task.width + kTokenBoxRows - 1) / kTokenBoxRows;
}

// The down GEMM's producer: warp 0. All its lanes walk the tasks; lane 0 issues the copies of
// weights and rows, all of them copy scales.
template <bool kWide>
__device__ __forceinline__ void run_copy_warp(const CUtensorMap* weight_map,
                                              const CUtensorMap* token_map, const KernelArgs& args,
                                              const SharedLayout& shared, const TileTable& table) {
  const int k_blocks = args.k_blocks;
  const int lane = threadIdx.x;
  const auto load_weight_part = [&](const Task& task, uint32_t bytes, int stage, int k_block) {
    if (lane == 0) {
      ptx::barrier_arrive_expect_bytes(shared.full_barrier(stage), bytes);
      load_weights<false>(weight_map, shared, task, stage, k_block, args.weight_policy);
    }
    if (lane < 2) load_weight_scale<false>(args, shared, task, stage, k_block, lane);
  };
  // The weights do not depend on the gate/up GEMM, so those of the first stages are under way
  // before it has ended.
  int token_debt = kStages;
  RingPosition position;
  for (int index = blockIdx.x; index < task_count(table, args); index += gridDim.x) {
    const Task task = find_task<kWide>(table, args, index);
    const int boxes = token_boxes(task);
    const uint32_t bytes = kWeightBytes + boxes * kTokenBoxRows * kRowBytes;
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      if (token_debt == kStages) {
        const int early = min(kStages, k_blocks);
        for (int i = 0; i < early; ++i) load_weight_part(task, bytes, i, i);
        token_debt = early;
        ptx::wait_for_previous_kernels();
      }
      if (token_debt == 0) {
        ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
        load_weight_part(task, bytes, position.stage, k_block);
      }
      const uint32_t full = shared.full_barrier(position.stage);
      if (lane == 0) {
        for (int box = 0; box < boxes; ++box) {
          ptx::tensor_load_2d(shared.tokens(position.stage) + box * kTokenBoxRows * kRowBytes,
                              token_map, full, k_block * kStageDepth,
                              task.first_row + box * kTokenBoxRows);
        }
      }
      // Of the rows that exist: the other columns are not stored.
      const float* scales = args.token_scale + k_block * args.token_scale_stride + task.first_row;
      for (int row = lane; row < task.rows; row += kWarpSize) {
        ptx::copy_async_4(shared.token_scales(position.stage) + 4 * row, scales + row);
      }
      ptx::barrier_arrive_after_copies(full);
      token_debt = max(token_debt - 1, 0);
      position.advance(kStages);
    }
  }
  // Also without a task: this kernel must not end before the previous one.
  ptx::wait_for_previous_kernels();
}

// The gate/up GEMM's producers: warps 0 ... 3. Eight threads copy a row, 16 bytes each; thread t
// also copies the scale of row t, threads 0 and 1 those of the weights, and thread 0 issues the
// weights' copies.
template <bool kWide>
__device__ __forceinline__ void run_gather_warps(const CUtensorMap* weight_map,
                                                 const KernelArgs& args, const SharedLayout& shared,
                                                 const TileTable& table) {
  constexpr int kRowStep = kProducerThreads / kRowChunks;
  constexpr int kRowsPerThread = kStageRows / kRowStep;
  static_assert(kStageRows % kRowStep == 0, "the last step must not reach the next stage");
  static_assert(kRowStep % 8 == 0, "a thread's rows share one swizzle");
  static_assert(kProducerThreads >= kFp8MaxTileTokens, "a thread for each row's scale");
  const int chunk = threadIdx.x % kRowChunks;
  const int row = threadIdx.x / kRowChunks;
  const int k_blocks = args.k_blocks;
  const int row_units = k_blocks * kRowChunks;  // of 16 bytes
  // Place of the row's chunk under the swizzle, in bytes from the first row.
  const uint32_t place = row * kRowBytes + ((chunk ^ (row % 8)) << 4);

  // The pairs of the thread's rows, and of the row whose scale it copies. Rows beyond the tile read
  // its first row once more.
  const auto load_pairs = [&](const Task& task, int (&pairs)[kRowsPerThread], int& scale_pair) {
    const int32_t* sorted_rows = args.gemm.sorted_rows + task.first_row;
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int wanted = row + i * kRowStep;
      pairs[i] = __ldcg(sorted_rows + (wanted < task.rows ? wanted : 0));
    }
    const int wanted = static_cast<int>(threadIdx.x);
    scale_pair = __ldcg(sorted_rows + (wanted < task.rows ? wanted : 0));
  };

  if (static_cast<int>(blockIdx.x) >= task_count(table, args)) return;
  Task task = find_task<kWide>(table, args, blockIdx.x);
  int pairs[kRowsPerThread];
  int scale_pair;
  load_pairs(task, pairs, scale_pair);
  RingPosition position;
  for (int index = blockIdx.x; index < task_count(table, args); index += gridDim.x) {
    const Task current = task;
    const int steps = (current.width + kRowStep - 1) / kRowStep;
    uint32_t source[kRowsPerThread];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      source[i] = static_cast<uint32_t>(pairs[i]) / args.gemm.top_k * row_units + chunk;
    }
    const float* scale_source =
        args.x_scale +
        static_cast<int64_t>(static_cast<uint32_t>(scale_pair) / args.gemm.top_k) * k_blocks;
    const bool copies_scale = static_cast<int>(threadIdx.x) < current.width;
    // The next task's pairs are on their way while this one's rows are copied.
    const int next = index + static_cast<int>(gridDim.x);
    if (next < task_count(table, args)) {
      task = find_task<kWide>(table, args, next);
      load_pairs(task, pairs, scale_pair);
    }
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
      const uint32_t full = shared.full_barrier(position.stage);
      if (threadIdx.x == 0) {
        ptx::barrier_arrive_expect_bytes(full, kWeightBytes);
        load_weights<true>(weight_map, shared, current, position.stage, k_block,
                           args.weight_policy);
      }
      if (threadIdx.x < 2) {
        load_weight_scale<true>(args, shared, current, position.stage, k_block, threadIdx.x);
      }
      if (copies_scale) {
        ptx::copy_async_4(shared.token_scales(position.stage) + 4 * threadIdx.x,
                          scale_source + k_block);
      }
      const uint32_t target = shared.tokens(position.stage) + place;
      const auto* x = reinterpret_cast<const uint4*>(args.x + k_block * kStageDepth);
#pragma unroll
      for (int i = 0; i < kRowsPerThread; ++i) {
        if (i >= steps) break;
        ptx::copy_async_16(target + i * kRowStep * kRowBytes, x + source[i]);
      }
      ptx::barrier_arrive_after_copies(full);
      position.advance(kStages);
    }
  }
}

}  // namespace layered_sglang::grouped_gemm_fp8
