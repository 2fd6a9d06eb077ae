// What all parts of the bf16 grouped GEMM share: a block's sizes, tasks, ring of stages and
// barriers.
#pragma once

#include <cuda_runtime.h>

#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_bf16_sm90.h"
#include "experts/task_walk.cuh"
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

// The table lies backwards. Its token tiles are counted in pairs in a cluster.
struct ExpertTable {
  Expert* last;
  __device__ __forceinline__ Expert& operator[](int expert) const { return last[-expert]; }
};

template <int kCluster>
__device__ __forceinline__ void fill_table(const GroupedGemmArgs& gemm, const ExpertTable& table) {
  fill_expert_table<kThreads>(gemm.expert_offsets, gemm.num_experts, table,
                              [](int rows) { return task_tile_count(rows, kCluster); });
}

// Read where it is needed: the registers are the consumers'.
__device__ __forceinline__ int task_count(const ExpertTable& table, const KernelArgs& args) {
  return table[args.gemm.num_experts].first_tile * args.num_weight_tiles;
}

template <int kCluster>
__device__ __forceinline__ Task find_task(const ExpertTable& table, const KernelArgs& args,
                                          int index) {
  return layered_sglang::find_task(table, args.gemm.num_experts, args.num_weight_tiles, index,
                                   [](int within, int tiles, int rows) {
                                     return place_task(within, tiles, rows, kCluster,
                                                       block_rank<kCluster>());
                                   });
}

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

}  // namespace layered_sglang::grouped_gemm
