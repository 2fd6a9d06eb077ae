// What the roles of an MXFP4 grouped GEMM share: its arguments, shared memory, and the walk over
// the tasks.
#pragma once

#include <cuda_runtime.h>

#include "common/sm90_ptx.cuh"
#include "experts/grouped_gemm_mxfp4_sm90.h"
#include "experts/task_walk.cuh"
#include "plan/expert_plan_layout.h"

namespace layered_sglang::grouped_gemm_mxfp4 {

inline constexpr int kThreads = 384;
inline constexpr int kConsumerWarps = 8;
inline constexpr int kGatherThreads = 64;
inline constexpr int kRowBytes = kMxfp4BlockDepth * 2;  // of a token in a stage, one swizzle row
inline constexpr int kRowChunks = kRowBytes / 16;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // 8 rows, as wgmma's descriptors count
inline constexpr int kTransposeBytes = 512;        // of a consumer warp

struct KernelArgs {
  GroupedGemmMxfp4Args gemm;
  Mxfp4Matrix weights;
  const __nv_bfloat16* tokens;  // x, or the intermediate
  __nv_bfloat16* out;
  int depth;  // K
  int k_blocks;
  int row_blocks;    // of an expert
  int bias_rows;     // of an expert
  int out_columns;   // row length of `out`
  int weight_tiles;  // of an expert
  uint64_t weight_policy;
  int32_t* next_piece;  // of the stream kernel: how many pieces have been taken
};

// The two shapes of a block, which has two consumer warpgroups.
//   few rows   tasks of 2 row blocks, one a warpgroup, and up to 64 tokens; two blocks on a
//              multiprocessor, so that more warps expand weights while others wait for products;
//   many rows  tasks of 4 row blocks, two a warpgroup, and up to 144 tokens.
//
// Shared memory: first all stages' tokens, then their weights, then the consumer warps' space for
// transposition, the expert table and barriers.
template <bool kMany>
struct Layout {
  static constexpr int kBlocks = kMany ? 2 : 1;    // row blocks of a warpgroup
  static constexpr int kTaskBlocks = 2 * kBlocks;  // of both
  static constexpr int kPerMultiprocessor = kMany ? 1 : 2;
  static constexpr int kTileTokens = kMany ? kMxfp4ManyTileTokens : kMxfp4FewTileTokens;

  // A block starts with as many registers for each of its threads as fit, a multiple of 8, and what
  // its warpgroups take must not be more: they would wait for it for ever.
  static constexpr int kStartRegisters = 65536 / kPerMultiprocessor / kThreads / 8 * 8;
  static constexpr int kProducerRegisters = kMany ? 56 : 40;
  static constexpr int kConsumerRegisters = kMany ? 224 : 96;
  static_assert(kProducerRegisters + 2 * kConsumerRegisters <= 3 * kStartRegisters);

  static constexpr int kTokenBytes = kTileTokens * kRowBytes;
  static constexpr int kWeightBytes = kTaskBlocks * kMxfp4BlockBytes;
  static constexpr int kTableBytes = (kMaxPlanExperts + 1) * sizeof(Expert);
  static constexpr int kFixedBytes = kConsumerWarps * kTransposeBytes + kTableBytes;
  // Of 227 KB, and 1 KB more for each block.
  static constexpr int kBytes = (kMany ? 227 : 113) * 1024;
  static constexpr int kStages = (kBytes - kFixedBytes) / (kTokenBytes + kWeightBytes + 16);
  static constexpr int kWeights = kStages * kTokenBytes;
  static constexpr int kTranspose = kWeights + kStages * kWeightBytes;
  static constexpr int kTable = kTranspose + kConsumerWarps * kTransposeBytes;
  static constexpr int kBarriers = kTable + kTableBytes;
  static_assert(kTokenBytes % 1024 == 0, "of the swizzle's pattern");
  static_assert(kBarriers % 8 == 0 && kBarriers + 16 * kStages <= kBytes);

  uint32_t start;
  __device__ __forceinline__ uint32_t tokens(int stage) const {
    return start + stage * kTokenBytes;
  }
  __device__ __forceinline__ uint32_t weights(int stage) const {
    return start + kWeights + stage * kWeightBytes;
  }
  __device__ __forceinline__ uint32_t transpose(int warp) const {
    return start + kTranspose + warp * kTransposeBytes;
  }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return start + kBarriers + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const {
    return start + kBarriers + 8 * (kStages + stage);
  }
};

template <bool kMany>
__device__ __forceinline__ void fill_table(const GroupedGemmMxfp4Args& gemm, Expert* table) {
  fill_expert_table<kThreads>(gemm.expert_offsets, gemm.num_experts, table,
                              [](int rows) { return mxfp4_token_tile_count(rows, kMany); });
}

__device__ __forceinline__ int task_count(const Expert* table, const KernelArgs& args) {
  return table[args.gemm.num_experts].first_tile * args.weight_tiles;
}

__device__ __forceinline__ Task find_task(const Expert* table, const KernelArgs& args, int index) {
  return layered_sglang::find_task(table, args.gemm.num_experts, args.weight_tiles, index,
                                   place_mxfp4_task);
}

}  // namespace layered_sglang::grouped_gemm_mxfp4
