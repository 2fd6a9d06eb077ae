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
// A block starts with 168 registers for each of its threads (65536 / 384, a multiple of 8), and
// what its warpgroups take must not be more: they would wait for it for ever.
inline constexpr int kProducerRegisters = 56;
inline constexpr int kConsumerRegisters = 224;
static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * 168, "the block's registers");

inline constexpr int kMaxStages = 4;
inline constexpr int kStageDepth = 64;             // of K
inline constexpr int kRowBytes = kStageDepth * 2;  // one row of the swizzle
inline constexpr int kRowChunks = kRowBytes / 16;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // 8 rows, as wgmma's descriptors count
inline constexpr int kHalfWeightBytes = kTileWeightRows / 2 * kRowBytes;
inline constexpr int kWeightBytes = 2 * kHalfWeightBytes;
inline constexpr int kTokenBytes = kMaxTileTokens * kRowBytes;
inline constexpr int kStageBytes = kWeightBytes + kTokenBytes;
inline constexpr int kStageAlignment = 1024;  // of the swizzle's pattern
inline constexpr int kTokenBoxRows = 16;      // of one tensor copy of the intermediate
static_assert(kTokenBytes % (kTokenBoxRows * kRowBytes) == 0, "boxes must not leave the stage");
static_assert(kStageBytes % kStageAlignment == 0, "each stage must be aligned");
inline constexpr int kTransposeBytes = 512;  // two of them a consumer warp
inline constexpr int kWarpWeightBytes = kHalfWeightBytes / 4;

// All of a block's shared memory: the ring from its start; at its end the barriers, and before them
// the tile table, backwards. So addresses are constants, and registers are left to the consumers.
inline constexpr int kSharedBytes = 227 * 1024;
inline constexpr int kBarriers = kSharedBytes - 2 * kMaxStages * 8;
inline constexpr int stage_count(int num_experts) {
  const int fitting = (kBarriers - 8 * (num_experts + 1)) / kStageBytes;
  return fitting < kMaxStages ? fitting : kMaxStages;
}

struct KernelArgs {
  GroupedGemmArgs gemm;
  const __nv_bfloat16* x;  // gate/up only
  __nv_bfloat16* out;
  int depth;             // K
  int out_columns;       // row length of `out`
  int num_weight_tiles;  // of an expert
  int parts_of_tile;     // down only: what the gate/up GEMM adds to stored_parts for a token tile
  int stages;            // of the ring: stage_count
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

// A block's tasks: first_task and every task_step-th from there. A cluster's blocks have the same
// ones and differ in their token tile.
// NOTE: not variables of the kernel, which would be live in all roles and in each of their
// registers.
template <int kCluster>
__device__ __forceinline__ int first_task() {
  return ptx::block_index() / kCluster;
}
template <int kCluster>
__device__ __forceinline__ int task_step() {
  return static_cast<int>(gridDim.x) / kCluster;
}

// Of the block in its cluster.
template <int kCluster>
__device__ __forceinline__ int block_rank() {
  return kCluster > 1 ? static_cast<int>(ptx::cluster_rank()) : 0;
}

struct alignas(8) Expert {
  int first_row;
  int first_tile;  // token tiles of the experts before it; in a cluster, pairs of them
};

// [E + 1], in shared memory; the last one says where all end.
struct ExpertTable {
  Expert* last;
  __device__ __forceinline__ Expert& operator[](int expert) const { return last[-expert]; }
};

// The whole block calls it.
template <int kCluster>
__device__ __forceinline__ void fill_table(const GroupedGemmArgs& gemm, const ExpertTable& table) {
  for (int e = threadIdx.x; e <= gemm.num_experts; e += kThreads) {
    // NOTE: written by a kernel that may overlap this one, so never through the read-only cache.
    table[e].first_row = __ldcg(gemm.expert_offsets + e);
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    int before = 0;
    for (int first = 0; first < gemm.num_experts; first += kWarpSize) {
      const int e = first + threadIdx.x;
      const bool exists = e < gemm.num_experts;
      const int rows = exists ? table[e + 1].first_row - table[e].first_row : 0;
      const int end = before + warp_inclusive_scan(task_tile_count(rows, kCluster), threadIdx.x);
      if (exists) table[e + 1].first_tile = end;
      before = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    }
    if (threadIdx.x == 0) table[0].first_tile = 0;
  }
  __syncthreads();
}

// Read where it is needed: the registers are the consumers'.
__device__ __forceinline__ int task_count(const ExpertTable& table, const KernelArgs& args) {
  return table[args.gemm.num_experts].first_tile * args.num_weight_tiles;
}

// A whole warp calls it. Tasks go expert by expert, and within one by weight tile, so that the
// blocks that run at one time share weights and tokens in the L2.
template <int kCluster>
__device__ __forceinline__ Task find_task(const ExpertTable& table, const KernelArgs& args,
                                          int index) {
  int experts_before = 0;
#pragma unroll 1  // there are few registers for it
  for (int e = threadIdx.x % kWarpSize; e < args.gemm.num_experts; e += kWarpSize) {
    experts_before += table[e + 1].first_tile * args.num_weight_tiles <= index;
  }
  Task task;
  task.expert = __reduce_add_sync(kAllLanes, experts_before);
  const Expert expert = table[task.expert];
  const Expert next = table[task.expert + 1];
  const TaskPlace place = place_task(
      index - expert.first_tile * args.num_weight_tiles, next.first_tile - expert.first_tile,
      next.first_row - expert.first_row, kCluster, block_rank<kCluster>());
  task.weight_tile = place.weight_tile;
  task.width = place.width;
  task.first_row = expert.first_row + place.first_row;
  task.rows = place.rows;
  return task;
}

// A stage of the ring and the parity of its current round.
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      round ^= 1;
    }
  }
  __device__ __forceinline__ int before(int stages) const {
    return (stage == 0 ? stages : stage) - 1;
  }
};

struct SharedLayout {
  uint32_t start;
  __device__ __forceinline__ uint32_t weights(int stage) const {
    return start + stage * kStageBytes;
  }
  __device__ __forceinline__ uint32_t tokens(int stage) const {
    return weights(stage) + kWeightBytes;
  }
  __device__ __forceinline__ uint32_t full_barrier(int stage) const {
    return start + kBarriers + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty_barrier(int stage) const {
    return start + kBarriers + 8 * (kMaxStages + stage);
  }
};

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
    // 16 neurons of 16 rows: 32 bytes a row. Two such blocks at a time while there are registers.
    constexpr int kBlocks = kColumns > 160 ? 1 : 2;
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
    for (int first = 0; first < kColumns; first += 16 * kBlocks) {
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
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
      uint4 value[kBlocks];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j)
        value[j] = ptx::load_shared_16(read_at + j * kTransposeBytes);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
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

// A warp's part of a task of `expert` is stored.
__device__ __forceinline__ void count_stored_part(const KernelArgs& args, int expert) {
  ptx::fence_async_proxy_global();
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ptx::add_release(args.gemm.stored_parts + expert, 1);
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
    if (k_block > 0) release<kCluster>(shared, position.before(args.stages));
    position.advance(args.stages);
  }
  ptx::wgmma_wait<0>();
  const int last = position.before(args.stages);
  // The last stage's weights, which this warpgroup alone reads, have served: the epilogue takes
  // their place. So the stage is released after it.
  ptx::named_barrier_sync(1 + group, 128);
  const int warp = threadIdx.x / kWarpSize % 4;
  store_tile<kGateUp, kColumns>(
      args, task, sums, group,
      shared.weights(last) + group * kHalfWeightBytes + warp * kWarpWeightBytes);
  ptx::fence_async_proxy();
  __syncwarp();
  release<kCluster>(shared, last);
  if (kGateUp) count_stored_part(args, task.expert);
}

template <bool kGateUp, int kCluster>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const SharedLayout& shared,
                                              const ExpertTable& table) {
  const int group = threadIdx.x / 128 - 1;
  // The second warpgroup starts late and stays behind: while one is in its epilogue the other keeps
  // the tensor cores busy.
  const int lag = min(args.tuning.consumer_lag, args.stages - 1);
  if (group == 1 && first_task<kCluster>() < task_count(table, args) && lag > 0 &&
      args.depth > lag * kStageDepth) {
    ptx::barrier_wait(shared.full_barrier(lag), 0);
  }
  RingPosition position;
  for (int index = first_task<kCluster>(); index < task_count(table, args);
       index += task_step<kCluster>()) {
    const Task task = find_task<kCluster>(table, args, index);
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
#if LAYERED_SGLANG_MAX_TILE_TOKENS > 160
      LS_CASE(168)
      LS_CASE(176)
      LS_CASE(184)
      LS_CASE(192)
#endif
    }
#undef LS_CASE
  }
}

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
