// The persistent grouped GEMM that both expert projections are instances of.
//
// A task is 256 weight rows of one expert times a token tile of 16 ... 160 of its rows. Weights are
// wgmma's M and tokens its N, so a token tile may be narrow: an expert with few rows costs little
// more than reading its weights, and tails waste at most 15 columns.
//
// Warps of a block:
//   0 ... 3  producers, which fill a ring of stages: weights with the copy engine, tokens with it,
//            too (the down GEMM, whose rows are in order: warp 0 alone), or gathered row by row
//            with cp.async (the gate/up GEMM: all four);
//   4 ... 11 two warpgroups, 128 weight rows each: wgmma, then the epilogue from registers.
// A stage is 64 of K (or 32: LAYERED_SGLANG_STAGE_DEPTH). Every role walks the same tasks on its
// own, so none is handed over.
#pragma once

#include <cuda_runtime.h>

#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "common/wgmma_bf16_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_bf16_sm90.h"
#include "experts/token_tiles.h"

namespace layered_sglang::grouped_gemm {

inline constexpr int kThreads = 384;
inline constexpr int kProducerThreads = 128;
inline constexpr int kConsumerWarps = 8;
inline constexpr int kProducerRegisters = 72;
inline constexpr int kConsumerRegisters = 216;

#ifndef LAYERED_SGLANG_STAGE_DEPTH
#define LAYERED_SGLANG_STAGE_DEPTH 64
#endif
#ifndef LAYERED_SGLANG_STAGES
#define LAYERED_SGLANG_STAGES (256 / LAYERED_SGLANG_STAGE_DEPTH)
#endif
inline constexpr int kStages = LAYERED_SGLANG_STAGES;
inline constexpr int kStageDepth = LAYERED_SGLANG_STAGE_DEPTH;  // of K
inline constexpr int kRowBytes = kStageDepth * 2;               // one row of the swizzle
inline constexpr int kRowChunks = kRowBytes / 16;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // 8 rows, as wgmma's descriptors count
static_assert(kRowBytes == 128 || kRowBytes == 64, "the copy engine's and wgmma's swizzles");
inline constexpr int kHalfWeightBytes = kTileWeightRows / 2 * kRowBytes;
inline constexpr int kWeightBytes = 2 * kHalfWeightBytes;
inline constexpr int kTokenBytes = kMaxTileTokens * kRowBytes;
inline constexpr int kStageBytes = kWeightBytes + kTokenBytes;
inline constexpr int kTokenBoxRows = 32;     // of one tensor copy of the intermediate
inline constexpr int kTransposeBytes = 512;  // two of them a consumer warp
inline constexpr int kTileTable =
    kStages * kStageBytes + kConsumerWarps * 2 * kTransposeBytes + 2 * kStages * 8;
static_assert(kTokenBytes % (kTokenBoxRows * kRowBytes) == 0, "boxes must not leave the stage");

// The ring needs 1024-byte alignment, which dynamic shared memory does not promise.
inline constexpr int shared_bytes(int num_experts) {
  return 1024 + kTileTable + 3 * num_experts * 4;
}

struct KernelArgs {
  GroupedGemmArgs gemm;
  const __nv_bfloat16* x;  // gate/up only
  __nv_bfloat16* out;
  int depth;             // K
  int out_columns;       // row length of `out`
  int num_weight_tiles;  // of an expert
  uint64_t weight_policy;
  GroupedGemmTuning tuning;
};

struct Task {
  int expert;
  int weight_tile;
  int first_row;
  int rows;   // that exist; 0 or less for an empty tile of a pair
  int width;  // columns that are computed
};

// A block's tasks. A cluster's blocks have the same ones and differ in their token tile.
struct TaskRange {
  int first;
  int end;
  int step;
  int rank;  // of the block in its cluster
};

// The experts' token tiles, in shared memory: [E] each.
struct TileTable {
  int* tile_end;  // tiles (pairs of them in a cluster) of the experts up to this one
  int* offset;
  int* count;
};

// The whole block calls it.
template <int kCluster>
__device__ __forceinline__ void fill_table(const GroupedGemmArgs& gemm, const TileTable& table) {
  for (int e = threadIdx.x; e < gemm.num_experts; e += kThreads) {
    // NOTE: written by a kernel that may overlap this one, so never through the read-only cache.
    table.count[e] = __ldcg(gemm.expert_counts + e);
    table.offset[e] = __ldcg(gemm.expert_offsets + e);
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    int before = 0;
    for (int first = 0; first < gemm.num_experts; first += kWarpSize) {
      const int e = first + threadIdx.x;
      const int tiles = e < gemm.num_experts ? task_tile_count(table.count[e], kCluster) : 0;
      const int end = before + warp_inclusive_scan(tiles, threadIdx.x);
      if (e < gemm.num_experts) table.tile_end[e] = end;
      before = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    }
  }
  __syncthreads();
}

// A whole warp calls it. Tasks go expert by expert, and within one by weight tile, so that the
// blocks that run at one time share weights and tokens in the L2.
template <int kCluster>
__device__ __forceinline__ Task find_task(const TileTable& table, const KernelArgs& args, int index,
                                          int rank) {
  const int lane = threadIdx.x % kWarpSize;
  const int num_weight_tiles = args.num_weight_tiles;
  int experts_before = 0;
  for (int e = lane; e < args.gemm.num_experts; e += kWarpSize) {
    experts_before += table.tile_end[e] * num_weight_tiles <= index;
  }
  Task task;
  task.expert = __reduce_add_sync(kAllLanes, experts_before);
  const int tiles_before = task.expert == 0 ? 0 : table.tile_end[task.expert - 1];
  const int tiles = table.tile_end[task.expert] - tiles_before;
  const TaskPlace place = place_task(index - tiles_before * num_weight_tiles, tiles,
                                     table.count[task.expert], kCluster, rank);
  task.weight_tile = place.weight_tile;
  task.width = place.width;
  task.first_row = table.offset[task.expert] + place.first_row;
  task.rows = place.rows;
  return task;
}

// A stage of the ring and the parity of its current round.
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      round ^= 1;
    }
  }
};

struct SharedLayout {
  uint32_t ring;
  uint32_t transpose;
  uint32_t full;   // barriers [kStages]
  uint32_t empty;  // barriers [kStages]
  __device__ __forceinline__ uint32_t weights(int stage) const {
    return ring + stage * kStageBytes;
  }
  __device__ __forceinline__ uint32_t tokens(int stage) const {
    return ring + stage * kStageBytes + kWeightBytes;
  }
  __device__ __forceinline__ uint32_t full_barrier(int stage) const { return full + 8 * stage; }
  __device__ __forceinline__ uint32_t empty_barrier(int stage) const { return empty + 8 * stage; }
};

// Half a tile of weights is one box, 128 rows: of w2 adjacent ones, of w13 the gate rows of 64
// neurons and then their up rows, which lie `inter` rows apart. Rows of its first coordinate.
template <bool kGateUp>
__device__ __forceinline__ int box_row(int weight_tile, int half) {
  return (2 * weight_tile + half) * (kGateUp ? kTileWeightRows / 4 : kTileWeightRows / 2);
}

template <bool kGateUp, int kCluster>
__device__ __forceinline__ void load_weights(const CUtensorMap* map, const SharedLayout& shared,
                                             const Task& task, int stage, int k_block, int rank,
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
    ptx::tensor_load_4d_multicast(shared.weights(stage) + rank * kHalfWeightBytes, map, barrier,
                                  column, box_row<kGateUp>(task.weight_tile, rank), 0, task.expert,
                                  0b11, policy);
  }
}

// Brings the block's own part of the weights into the L2, tuning.prefetch_stages before the stage
// of `k_block`, which may be one of the next task.
template <bool kGateUp, int kCluster>
__device__ __forceinline__ void prefetch_weights(const CUtensorMap* map, const KernelArgs& args,
                                                 const Task& current, const Task& next,
                                                 bool has_next, int k_block, int k_blocks,
                                                 int rank) {
  if (args.tuning.prefetch_stages == 0) return;
  int ahead = k_block + args.tuning.prefetch_stages;
  const bool beyond = ahead >= k_blocks;
  if (beyond) ahead -= k_blocks;
  if ((beyond && !has_next) || ahead >= k_blocks) return;
  const int expert = beyond ? next.expert : current.expert;
  const int weight_tile = beyond ? next.weight_tile : current.weight_tile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (kCluster == 1 || half == rank) {
      ptx::tensor_prefetch_4d(map, ahead * kStageDepth, box_row<kGateUp>(weight_tile, half), 0,
                              expert);
    }
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

// The down GEMM's producer: warp 0. All its lanes walk the tasks, one issues the copies.
template <int kCluster>
__device__ __forceinline__ void run_copy_warp(const CUtensorMap* weight_map,
                                              const CUtensorMap* token_map, const KernelArgs& args,
                                              const SharedLayout& shared, const TileTable& table,
                                              const TaskRange& range) {
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  const bool issues = threadIdx.x == 0;
  // The weights do not depend on the gate/up GEMM, so those of the first stages are under way
  // before it has ended.
  int token_debt = kStages;
  RingPosition position;
  Task next = {};
  if (range.first < range.end) next = find_task<kCluster>(table, args, range.first, range.rank);
  for (int index = range.first; index < range.end; index += range.step) {
    const Task task = next;
    const bool has_next = index + range.step < range.end;
    if (has_next) next = find_task<kCluster>(table, args, index + range.step, range.rank);
    const uint32_t bytes = kWeightBytes + token_boxes(task) * kTokenBoxRows * kRowBytes;
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      if (token_debt == kStages) {
        const int early = min(kStages, k_blocks);
        if (issues) {
          for (int i = 0; i < early; ++i) {
            ptx::barrier_arrive_expect_bytes(shared.full_barrier(i), bytes);
            load_weights<false, kCluster>(weight_map, shared, task, i, i, range.rank,
                                          args.weight_policy);
          }
        }
        token_debt = early;
        ptx::wait_for_previous_kernels();
      }
      if (issues) {
        if (token_debt == 0) {
          ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
          ptx::barrier_arrive_expect_bytes(shared.full_barrier(position.stage), bytes);
          load_weights<false, kCluster>(weight_map, shared, task, position.stage, k_block,
                                        range.rank, args.weight_policy);
        }
        load_tokens(token_map, shared, task, position.stage, k_block);
        prefetch_weights<false, kCluster>(weight_map, args, task, next, has_next, k_block, k_blocks,
                                          range.rank);
      }
      token_debt = max(token_debt - 1, 0);
      position.advance();
    }
  }
  // Also without a task: this kernel must not end before the previous one.
  ptx::wait_for_previous_kernels();
}

// Place of a row's 16-byte chunk under the swizzle, in bytes from the first row.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  const int turn = kRowBytes == 128 ? row % 8 : row / 2 % 4;
  return row * kRowBytes + ((chunk ^ turn) << 4);
}

// The gate/up GEMM's producers: warps 0 ... 3. kRowChunks threads copy a row, 16 bytes each; thread
// 0 also issues the weights' copies.
template <int kCluster>
__device__ __forceinline__ void run_gather_warps(const CUtensorMap* weight_map,
                                                 const KernelArgs& args, const SharedLayout& shared,
                                                 const TileTable& table, const TaskRange& range) {
  constexpr int kRowStep = kProducerThreads / kRowChunks;
  constexpr int kRowsPerThread = kMaxTileTokens / kRowStep;
  static_assert(kMaxTileTokens % kRowStep == 0, "the last step must not reach the next stage");
  static_assert(kRowStep % 8 == 0, "a thread's rows share one swizzle");
  const int chunk = threadIdx.x % kRowChunks;
  const int row = threadIdx.x / kRowChunks;
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  const int row_units = args.depth / 8;  // of 16 bytes
  const uint32_t place = swizzled(row, chunk);

  // The pairs of the thread's rows. Rows beyond the tile read its first row once more, and an empty
  // tile, which has none, the first token.
  const auto load_pairs = [&](const Task& task, int (&pairs)[kRowsPerThread]) {
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      const int valid_row = row + i * kRowStep < task.rows ? row + i * kRowStep : 0;
      pairs[i] = task.rows > 0 ? __ldcg(args.gemm.sorted_rows + task.first_row + valid_row) : 0;
    }
  };

  if (range.first >= range.end) return;
  Task task = find_task<kCluster>(table, args, range.first, range.rank);
  int pairs[kRowsPerThread];
  load_pairs(task, pairs);
  RingPosition position;
  for (int index = range.first; index < range.end; index += range.step) {
    const Task current = task;
    const int steps = (current.width + kRowStep - 1) / kRowStep;
    uint32_t source[kRowsPerThread];  // in units of 16 bytes
#pragma unroll
    for (int i = 0; i < kRowsPerThread; ++i) {
      source[i] = static_cast<uint32_t>(pairs[i]) / args.gemm.top_k * row_units + chunk;
    }
    // The next task's pairs are on their way while this one's rows are copied.
    const bool has_next = index + range.step < range.end;
    if (has_next) {
      task = find_task<kCluster>(table, args, index + range.step, range.rank);
      load_pairs(task, pairs);
    }
    for (int k_block = 0; k_block < k_blocks; ++k_block) {
      ptx::barrier_wait(shared.empty_barrier(position.stage), position.round ^ 1);
      const uint32_t full = shared.full_barrier(position.stage);
      if (threadIdx.x == 0) {
        ptx::barrier_arrive_expect_bytes(full, kWeightBytes);
        load_weights<true, kCluster>(weight_map, shared, current, position.stage, k_block,
                                     range.rank, args.weight_policy);
        prefetch_weights<true, kCluster>(weight_map, args, current, task, has_next, k_block,
                                         k_blocks, range.rank);
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
      position.advance();
    }
  }
}

// Stores a task's result. Of a warpgroup's 128 weight rows, sums[0] has the gate rows and sums[1]
// the up rows of the same 64 neurons; in the down GEMM, sums[0] has the even 8-row groups and
// sums[1] the odd ones, so a warp holds 32 adjacent rows. So it stores whole sectors. An 8x8 block
// is turned by stmatrix, so that a lane gets 8 adjacent outputs of one row.
template <bool kGateUp, int kColumns>
__device__ __forceinline__ void store_tile(const KernelArgs& args, const Task& task,
                                           const float (&sums)[2][kColumns / 2], int group,
                                           uint32_t transpose) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int matrix = lane / 8;
  if constexpr (kGateUp) {
    // 16 neurons of 16 rows at a time: 32 bytes a row.
    const int store_row = matrix / 2 * 8 + lane % 8;
    const uint32_t write_at =
        transpose + store_row * 32 + (((matrix % 2) ^ (store_row / 4 % 2)) << 4);
    const int row = lane / 2;
    const int chunk = lane % 2;
    const uint32_t read_at = transpose + row * 32 + ((chunk ^ (row / 4 % 2)) << 4);
    const int column = (task.weight_tile * kTileWeightRows + group * kTileWeightRows / 2) / 2 +
                       warp * 16 + chunk * 8;
    __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row) * args.out_columns + column;
    const Activation activation = args.gemm.activation;
#pragma unroll
    for (int first = 0; first < kColumns; first += 32) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t packed[2][2] = {};  // [8 rows of the 16][8 neurons of the 16]
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column_block = first / 8 + 2 * j + half;
          if (column_block * 8 >= kColumns) continue;
#pragma unroll
          for (int b = 0; b < 2; ++b) {
            const float* gate = &sums[0][4 * column_block + 2 * b];
            const float* up = &sums[1][4 * column_block + 2 * b];
            packed[half][b] = ptx::pack_bf16(activate(gate[0], up[0], activation),
                                             activate(gate[1], up[1], activation));
          }
        }
        if (first + 16 * j < kColumns) {
          ptx::store_matrices_transposed(write_at + j * kTransposeBytes, packed[0][0], packed[0][1],
                                         packed[1][0], packed[1][1]);
        }
      }
      __syncwarp();
      uint4 value[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) value[j] = ptx::load_shared_16(read_at + j * kTransposeBytes);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int tile_row = first + 16 * j + row;
        if (tile_row < task.rows && column < args.out_columns) {
          *reinterpret_cast<uint4*>(out + static_cast<size_t>(tile_row) * args.out_columns) =
              value[j];
        }
      }
    }
  } else {
    // 32 outputs of 8 rows at a time: 64 bytes a row.
    const int store_row = lane % 8;
    const uint32_t write_at = transpose + store_row * 64 + ((matrix ^ (store_row / 2)) << 4);
    const int row = lane / 4;
    const int chunk = lane % 4;
    const uint32_t read_at = transpose + row * 64 + ((chunk ^ (row / 2)) << 4);
    const int column =
        task.weight_tile * kTileWeightRows + group * kTileWeightRows / 2 + warp * 32 + chunk * 8;
    __nv_bfloat16* out = args.out + static_cast<size_t>(task.first_row) * args.out_columns + column;
#pragma unroll
    for (int first = 0; first < kColumns; first += 16) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (first + 8 * j >= kColumns) continue;
        const float* even = &sums[0][first / 2 + 4 * j];
        const float* odd = &sums[1][first / 2 + 4 * j];
        ptx::store_matrices_transposed(
            write_at + j * kTransposeBytes, ptx::pack_bf16(even[0], even[1]),
            ptx::pack_bf16(odd[0], odd[1]), ptx::pack_bf16(even[2], even[3]),
            ptx::pack_bf16(odd[2], odd[3]));
      }
      __syncwarp();
      uint4 value[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) value[j] = ptx::load_shared_16(read_at + j * kTransposeBytes);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int tile_row = first + 8 * j + row;
        if (tile_row < task.rows && column < args.out_columns) {
          *reinterpret_cast<uint4*>(out + static_cast<size_t>(tile_row) * args.out_columns) =
              value[j];
        }
      }
    }
  }
}

template <int kCluster>
__device__ __forceinline__ void release(const SharedLayout& shared, int stage) {
  const int lane = threadIdx.x % kWarpSize;
  if (lane < kCluster) {
    if constexpr (kCluster == 1) {
      ptx::barrier_arrive(shared.empty_barrier(stage));
    } else {
      // NOTE: the other block's copy engine writes into this block's stage, so both must know.
      ptx::barrier_arrive_remote(shared.empty_barrier(stage), lane);
    }
  }
}

// A warpgroup's share of one task: 128 weight rows.
template <bool kGateUp, int kCluster, int kColumns>
__device__ __forceinline__ void compute_task(const KernelArgs& args, const SharedLayout& shared,
                                             const Task& task, int group, RingPosition& position) {
  // NOTE: cleared, and not left to the first wgmma: without a definition the registers would count
  // as live all the way from the kernel's start, in every case of the switch at once.
  float sums[2][kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
  const int k_blocks = (args.depth + kStageDepth - 1) / kStageDepth;
  // In units of 16 bytes, as descriptors hold them.
  const uint32_t first_weights = (shared.weights(0) + group * kHalfWeightBytes) / 16;
  const uint32_t first_tokens = shared.tokens(0) / 16;
  int previous = -1;
  for (int k_block = 0; k_block < k_blocks; ++k_block) {
    ptx::barrier_wait(shared.full_barrier(position.stage), position.round);
    // NOTE: the gather's writes are ordinary ones to wgmma, and the barrier alone does not order
    // those.
    if (kGateUp) ptx::fence_async_proxy();
    const uint32_t weights = first_weights + position.stage * (kStageBytes / 16);
    const uint32_t tokens = weights + first_tokens - first_weights;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStageDepth / 16; ++k) {
      const uint64_t b = ptx::operand_descriptor<kRowBytes, kGroupBytes>(tokens + k * 2);
#pragma unroll
      for (int parity = 0; parity < 2; ++parity) {
        // See store_tile: which of the 128 rows are whose.
        constexpr int kGroupStride = kGateUp ? kGroupBytes : 2 * kGroupBytes;
        constexpr int kSecond = (kGateUp ? kHalfWeightBytes / 2 : kGroupBytes) / 16;
        wgmma_bf16<kColumns>(
            sums[parity],
            ptx::operand_descriptor<kRowBytes, kGroupStride>(weights + parity * kSecond + k * 2),
            b);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (previous >= 0) release<kCluster>(shared, previous);
    previous = position.stage;
    position.advance();
  }
  ptx::wgmma_wait<0>();
  release<kCluster>(shared, previous);
  const int warp = threadIdx.x / kWarpSize - kProducerThreads / kWarpSize;
  store_tile<kGateUp, kColumns>(args, task, sums, group,
                                shared.transpose + warp * 2 * kTransposeBytes);
}

template <bool kGateUp, int kCluster>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const SharedLayout& shared,
                                              const TileTable& table, const TaskRange& range) {
  const int group = threadIdx.x / 128 - 1;
  // The second warpgroup starts late and stays behind: while one is in its epilogue the other keeps
  // the tensor cores busy.
  const int lag = min(args.tuning.consumer_lag, kStages - 1);
  if (group == 1 && range.first < range.end && lag > 0 && args.depth > lag * kStageDepth) {
    ptx::barrier_wait(shared.full_barrier(lag), 0);
  }
  RingPosition position;
  for (int index = range.first; index < range.end; index += range.step) {
    const Task task = find_task<kCluster>(table, args, index, range.rank);
#define LS_CASE(columns)                                                           \
  case columns / 8:                                                                \
    compute_task<kGateUp, kCluster, columns>(args, shared, task, group, position); \
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
    }
#undef LS_CASE
  }
}

template <bool kGateUp, int kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_gemm_bf16(const __grid_constant__ CUtensorMap weight_map,
                      const __grid_constant__ CUtensorMap token_map,
                      const __grid_constant__ KernelArgs args) {
  extern __shared__ uint8_t shared_memory[];
  uint8_t* aligned = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(shared_memory) + 1023) & ~uintptr_t{1023});
  SharedLayout shared;
  shared.ring = ptx::shared_address(aligned);
  shared.transpose = shared.ring + kStages * kStageBytes;
  shared.full = shared.transpose + kConsumerWarps * 2 * kTransposeBytes;
  shared.empty = shared.full + kStages * 8;
  TileTable table;
  table.tile_end = reinterpret_cast<int*>(aligned + kTileTable);
  table.offset = table.tile_end + args.gemm.num_experts;
  table.count = table.offset + args.gemm.num_experts;

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    if (!kGateUp) ptx::prefetch_tensor_map(&token_map);
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::barrier_init(shared.full_barrier(stage), kGateUp ? 1 + kProducerThreads : 1);
      ptx::barrier_init(shared.empty_barrier(stage), kConsumerWarps * kCluster);
    }
    ptx::barrier_init_fence();
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
    ptx::launch_dependents();
  }
  fill_table<kCluster>(args.gemm, table);
  if (kCluster > 1) ptx::cluster_sync();  // the other block's barriers are ready, too

  const TaskRange range = {static_cast<int>(blockIdx.x) / kCluster,
                           table.tile_end[args.gemm.num_experts - 1] * args.num_weight_tiles,
                           static_cast<int>(gridDim.x) / kCluster,
                           kCluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0};
  if (threadIdx.x < kProducerThreads) {
    ptx::lower_registers<kProducerRegisters>();
    if constexpr (kGateUp) {
      run_gather_warps<kCluster>(&weight_map, args, shared, table, range);
    } else if (threadIdx.x < kWarpSize) {
      run_copy_warp<kCluster>(&weight_map, &token_map, args, shared, table, range);
    }
  } else {
    ptx::raise_registers<kConsumerRegisters>();
    run_consumers<kGateUp, kCluster>(args, shared, table, range);
  }
  // NOTE: a block must not end while the other may still arrive at its barriers.
  if (kCluster > 1) {
    __syncwarp();
    ptx::cluster_sync();
  }
}

}  // namespace layered_sglang::grouped_gemm
