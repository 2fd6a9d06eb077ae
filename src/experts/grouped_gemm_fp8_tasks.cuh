// What all parts of the fp8 grouped GEMM share: a block's sizes, shared memory, tasks, and ring of
// stages.
#pragma once

#include <cuda_runtime.h>

#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "common/sm90_shared.cuh"
#include "experts/grouped_gemm_fp8_sm90.h"
#include "experts/task_walk.cuh"
#include "experts/token_tiles_fp8.h"

namespace layered_sglang::grouped_gemm_fp8 {

inline constexpr int kThreads = 384;
inline constexpr int kProducerThreads = 128;
inline constexpr int kConsumerWarps = 8;
// Of a thread; the gate/up GEMM's producers keep the places of the rows that they gather. All come
// out of the 168 of each thread that the block starts with.
template <bool kGateUp>
inline constexpr int kProducerRegisters = kGateUp ? 72 : 56;
template <bool kGateUp>
inline constexpr int kConsumerRegisters = kGateUp ? 216 : 224;
static_assert(kProducerRegisters<true> + 2 * kConsumerRegisters<true> <= 3 * 168);
static_assert(kProducerRegisters<false> + 2 * kConsumerRegisters<false> <= 3 * 168);

inline constexpr int kStages = 4;
inline constexpr int kStageDepth = kFp8Block;  // of K
inline constexpr int kRowBytes = kStageDepth;  // one row of the swizzle
inline constexpr int kRowChunks = kRowBytes / 16;
inline constexpr int kGroupBytes = 8 * kRowBytes;  // 8 rows, as wgmma's descriptors count
inline constexpr int kHalfWeightBytes = kTileWeightRows / 2 * kRowBytes;
inline constexpr int kWeightBytes = 2 * kHalfWeightBytes;
inline constexpr int kStageRows = 128;  // room for the widest tile's boxes and gathered rows
inline constexpr int kTokenBytes = kStageRows * kRowBytes;
inline constexpr int kStageBytes = kWeightBytes + kTokenBytes;
inline constexpr int kTokenBoxRows = 32;  // of one tensor copy of the intermediate
static_assert(kStageRows % kTokenBoxRows == 0 && kStageRows >= kFp8WideTileTokens,
              "boxes must not leave the stage");

// Scales of a stage: one for each row of the token tile, then two of the weights: of the gate and
// the up block, or of the two warpgroups' blocks of w2.
inline constexpr int kTokenScaleBytes = kStageRows * 4;
inline constexpr int kScaleBytes = kTokenScaleBytes + 128;

// Both epilogues' scratch. Down: 1 KB a consumer warp. Gate/up: of each warpgroup its quantised
// neurons, a row of 64 padded to 80 bytes, and its inverse scales; and the rows' largest neurons,
// three times in turn.
inline constexpr int kTransposeBytes = 512;
inline constexpr int kNeuronRowBytes = 80;
inline constexpr int kNeuronBytes = kStageRows * kNeuronRowBytes;
inline constexpr int kLargestBuffers = 3;
inline constexpr int kInverseOffset = 2 * kNeuronBytes;
inline constexpr int kLargestOffset = kInverseOffset + 2 * kTokenScaleBytes;
inline constexpr int kEpilogueBytes = kLargestOffset + kLargestBuffers * kTokenScaleBytes;
static_assert(kEpilogueBytes >= kConsumerWarps * 2 * kTransposeBytes, "the down GEMM's scratch");

inline constexpr int kScaleOffset = kStages * kStageBytes;
inline constexpr int kEpilogueOffset = kScaleOffset + kStages * kScaleBytes;
inline constexpr int kBarrierOffset = kEpilogueOffset + kEpilogueBytes;
inline constexpr int kTileTable = kBarrierOffset + 2 * kStages * 8;

// The ring needs 1024-byte alignment, which dynamic shared memory does not promise.
inline constexpr int shared_bytes(int num_experts) {
  return 1024 + kTileTable + 3 * num_experts * 4;
}
static_assert(shared_bytes(512) <= 227 * 1024, "one block's shared memory");

// Named barriers; 0 is __syncthreads'.
inline constexpr int kConsumersBarrier = 1;
inline constexpr int kWarpgroupBarrier = 2;  // and 3

struct KernelArgs {
  GroupedGemmArgs gemm;
  const uint8_t* x;           // gate/up only
  const float* x_scale;       // gate/up only: [tokens, k_blocks]
  const float* weight_scale;  // [E, scale_rows, k_blocks]
  uint8_t* neurons;           // gate/up only: [rows, inter]
  // [inter / 128, token_scale_stride], of the intermediate: the gate/up GEMM writes them, the down
  // GEMM reads them. NOTE: not by the copy engine, which wants to start at multiples of 16 bytes.
  float* token_scale;
  int64_t token_scale_stride;
  __nv_bfloat16* out;  // down only: [rows, out_columns]
  int k_blocks;
  int out_columns;
  int num_weight_tiles;  // of an expert
  int scale_rows;        // blocks of 128 weight rows of an expert
  uint64_t weight_policy;
};

// The experts' token tiles, in shared memory: [E] each. (Not the table of task_walk.cuh: with it
// the wide down GEMM has too few registers.)
struct TileTable {
  int* tile_end;  // tiles of the experts up to this one
  int* offset;
  int* count;
};

// The whole block calls it.
template <bool kWide>
__device__ __forceinline__ void fill_table(const GroupedGemmArgs& gemm, const TileTable& table) {
  for (int e = threadIdx.x; e < gemm.num_experts; e += kThreads) {
    // NOTE: written by a kernel that may overlap this one, so never through the read-only cache.
    const int offset = __ldcg(gemm.expert_offsets + e);
    table.count[e] = __ldcg(gemm.expert_offsets + e + 1) - offset;  // rows are not padded
    table.offset[e] = offset;
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    int before = 0;
    for (int first = 0; first < gemm.num_experts; first += kWarpSize) {
      const int e = first + threadIdx.x;
      const int tiles = e < gemm.num_experts ? fp8_token_tile_count(table.count[e], kWide) : 0;
      const int end = before + warp_inclusive_scan(tiles, threadIdx.x);
      if (e < gemm.num_experts) table.tile_end[e] = end;
      before = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    }
  }
  __syncthreads();
}

// Tasks of all experts. NOTE: asked for again after each one, so that no register keeps it.
__device__ __forceinline__ int task_count(const TileTable& table, const KernelArgs& args) {
  return table.tile_end[args.gemm.num_experts - 1] * args.num_weight_tiles;
}

// A whole warp calls it. Tasks go expert by expert, and within one by weight tile, so that the
// blocks that run at one time share weights and tokens in the L2.
template <bool kWide>
__device__ __forceinline__ Task find_task(const TileTable& table, const KernelArgs& args,
                                          int index) {
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
  const TaskPlace place = place_fp8_task(index - tiles_before * num_weight_tiles, tiles,
                                         table.count[task.expert], kWide);
  task.weight_tile = place.weight_tile;
  task.width = kWide ? place.rows : place.width;
  task.first_row = table.offset[task.expert] + place.first_row;
  task.rows = place.rows;
  return task;
}

struct SharedLayout {
  uint32_t base;
  __device__ __forceinline__ uint32_t weights(int stage) const {
    return base + stage * kStageBytes;
  }
  __device__ __forceinline__ uint32_t tokens(int stage) const {
    return base + stage * kStageBytes + kWeightBytes;
  }
  __device__ __forceinline__ uint32_t token_scales(int stage) const {
    return base + kScaleOffset + stage * kScaleBytes;
  }
  __device__ __forceinline__ uint32_t weight_scales(int stage) const {
    return token_scales(stage) + kTokenScaleBytes;
  }
  __device__ __forceinline__ uint32_t epilogue() const { return base + kEpilogueOffset; }
  __device__ __forceinline__ uint32_t full_barrier(int stage) const {
    return base + kBarrierOffset + 8 * stage;
  }
  __device__ __forceinline__ uint32_t empty_barrier(int stage) const {
    return base + kBarrierOffset + 8 * (kStages + stage);
  }
};

template <bool kGateUp>
__device__ __forceinline__ void wait_full(const SharedLayout& shared, const RingPosition& at) {
  ptx::barrier_wait(shared.full_barrier(at.stage), at.round);
  // NOTE: the gather's writes are ordinary ones to wgmma, and the barrier alone does not order
  // those.
  if (kGateUp) ptx::fence_async_proxy();
}

// All lanes have read what they need of the stage.
__device__ __forceinline__ void release(const SharedLayout& shared, int stage) {
  __syncwarp();
  if (threadIdx.x % kWarpSize == 0) ptx::barrier_arrive(shared.empty_barrier(stage));
}

}  // namespace layered_sglang::grouped_gemm_fp8
