// What all parts of the bf16 grouped GEMM share: a block's sizes, tasks, ring of stages and
// barriers.
#pragma once

#include <cuda_runtime.h>

#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_bf16_sm90.h"
#include "experts/token_tiles.h"
#include "experts/token_tiles_wide.h"

namespace layered_sglang::grouped_gemm {

// kWide: of wide tasks (grouped_gemm_bf16_wide.cuh), else of narrow ones (..._narrow.cuh).
template <bool kWide>
inline constexpr int kConsumerGroups = kWide ? kWideGroups : 2;
template <bool kWide>
inline constexpr int kConsumerWarps = 4 * kConsumerGroups<kWide>;
inline constexpr int kProducerThreads = 128;
template <bool kWide>
inline constexpr int kThreads = kProducerThreads * (1 + kConsumerGroups<kWide>);
// A block starts with 168 registers for each of 384 threads or 128 for each of 512 (65536 /
// threads, a multiple of 8), and what its warpgroups take must not be more: they would wait for it
// for ever.
template <bool kWide>
inline constexpr int kProducerRegisters = !kWide             ? 56
                                          : kWideGroups == 3 ? 80
                                                             : 104;
template <bool kWide>
inline constexpr int kConsumerRegisters = !kWide             ? 224
                                          : kWideGroups == 3 ? 144
                                                             : 200;
static_assert(kProducerRegisters<false> + 2 * kConsumerRegisters<false> <= 3 * 168);
static_assert(kProducerRegisters<true> + kWideGroups * kConsumerRegisters<true> <=
              (kWideGroups == 3 ? 4 * 128 : 3 * 168));

inline constexpr int kMaxStages = 5;
inline constexpr int kStageDepth = 64;             // of K
inline constexpr int kRowBytes = kStageDepth * 2;  // one row of the swizzle
inline constexpr int kRowChunks = kRowBytes / 16;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // 8 rows, as wgmma's descriptors count
template <bool kWide>
inline constexpr int kWeightRows = kWide ? kWideWeightRows : kTileWeightRows;
template <bool kWide>
inline constexpr int kHalfWeightBytes = kWeightRows<kWide> / 2 * kRowBytes;
template <bool kWide>
inline constexpr int kWeightBytes = 2 * kHalfWeightBytes<kWide>;
inline constexpr int kStageAlignment = 1024;  // of the swizzle's pattern
template <bool kWide>
inline constexpr int kTileTokens = kWide ? kWideTileTokens : kMaxTileTokens;
template <bool kWide>
inline constexpr int kStageBytes = kWeightBytes<kWide> + kTileTokens<kWide> * kRowBytes;
static_assert(kStageBytes<false> % kStageAlignment == 0, "each stage must be aligned");
static_assert(kStageBytes<true> % kStageAlignment == 0, "each stage must be aligned");

// The intermediate's rows of a tile come in boxes of 128, 64, 32 and 16 rows, each size at most
// once: one thread issues the copies, and they cost it more than their bytes do.
inline constexpr int kTokenMaps = 4;
inline constexpr int kTokenUnit = 16;
__host__ __device__ inline constexpr int token_box_rows(int map) { return 128 >> map; }
static_assert(token_box_rows(kTokenMaps - 1) == kTokenUnit, "the smallest box");
static_assert(kMaxTileTokens < 256 && kMaxTileTokens % kTokenUnit == 0, "the boxes' sum");
struct TokenMaps {
  CUtensorMap map[kTokenMaps];
};

// All of a block's shared memory: the ring from its start; at its end the barriers, and before them
// the tile table, backwards. So addresses are constants, and registers are left to the consumers.
inline constexpr int kSharedBytes = 227 * 1024;
inline constexpr int kBarriers = kSharedBytes - 2 * kMaxStages * 8;
inline constexpr int stage_count(int num_experts, bool wide) {
  const int stage_bytes = wide ? kStageBytes<true> : kStageBytes<false>;
  const int fitting = (kBarriers - 8 * (num_experts + 1)) / stage_bytes;
  return fitting < kMaxStages ? fitting : kMaxStages;
}

struct KernelArgs {
  GroupedGemmArgs gemm;
  const __nv_bfloat16* x;  // gate/up only
  const __nv_bfloat16* weights;
  __nv_bfloat16* out;
  int depth;                 // K
  int out_columns;           // row length of `out`
  int num_weight_tiles;      // of an expert
  TokenTiles gate_up_tiles;  // down only
  int parts_of_tile;    // down only: what the gate/up GEMM adds to stored_parts for one of them
  int stages;           // of the ring: stage_count
  int prefetch_stages;  // at most the stages of a task
  uint64_t weight_policy;
  GroupedGemmTuning tuning;
};

struct Task {
  int expert;
  int weight_tile;
  int first_row;
  int rows;   // that exist; 0 or less for an empty tile of a pair
  int width;  // of a narrow one, columns that are computed; of a wide one, rows that are copied
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

template <bool kWide>
__device__ __forceinline__ int tile_count(int rows, int cluster) {
  return kWide ? wide_task_tile_count(rows, cluster) : task_tile_count(rows, cluster);
}

// The whole block calls it.
template <int kCluster, bool kWide>
__device__ __forceinline__ void fill_table(const GroupedGemmArgs& gemm, const ExpertTable& table) {
  for (int e = threadIdx.x; e <= gemm.num_experts; e += kThreads<kWide>) {
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
      const int end = before + warp_inclusive_scan(tile_count<kWide>(rows, kCluster), threadIdx.x);
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
template <int kCluster, bool kWide>
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
  const int within = index - expert.first_tile * args.num_weight_tiles;
  const int tiles = next.first_tile - expert.first_tile;
  const int rows = next.first_row - expert.first_row;
  const int rank = block_rank<kCluster>();
  const TaskPlace place = kWide ? place_wide_task(within, tiles, rows, kCluster, rank)
                                : place_task(within, tiles, rows, kCluster, rank);
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

template <bool kWide>
struct SharedLayout {
  uint32_t start;
  __device__ __forceinline__ uint32_t weights(int stage) const {
    return start + stage * kStageBytes<kWide>;
  }
  __device__ __forceinline__ uint32_t tokens(int stage) const {
    return weights(stage) + kWeightBytes<kWide>;
  }
  __device__ __forceinline__ uint32_t full_barrier(int stage) const {
    return start + kBarriers + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty_barrier(int stage) const {
    return start + kBarriers + 8 * (kMaxStages + stage);
  }
};
// The warp has read what it needs of the stage.
template <int kCluster, bool kWide>
__device__ __forceinline__ void release(const SharedLayout<kWide>& shared, int stage) {
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

// Whether a task's stored parts are counted only when the next one's first products are under way,
// as counting waits until the stores have arrived. Narrow pairs have no register for it.
template <bool kGateUp, int kCluster, bool kWide>
inline constexpr bool kCountsLate = kGateUp && (kWide || kCluster == 1);

// A warp's part of a task of `expert` is stored; -1: of none.
__device__ __forceinline__ void count_stored_part(const KernelArgs& args, int expert) {
  if (expert < 0) return;
  ptx::fence_async_proxy_global();
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ptx::add_release(args.gemm.stored_parts + expert, 1);
}
}  // namespace layered_sglang::grouped_gemm
