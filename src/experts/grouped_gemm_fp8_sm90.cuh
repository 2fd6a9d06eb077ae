// The persistent grouped GEMM in block-scaled fp8 that both expert projections are instances of.
//
// It has the shape of the bf16 one (grouped_gemm_bf16_sm90.cuh): a task is 256 weight rows of one
// expert times a token tile of 16 ... 120 of its rows, weights are wgmma's M and tokens its N, and
// warps 0 ... 3 fill a ring of stages for two warpgroups of 128 weight rows each. What differs:
//   - a stage is 128 of K, which is one block of scales: its products are summed by the tensor
//     cores and then added, times their scales, to the sums in fp32 (`promote`);
//   - the scales of a stage's rows and weights come into shared memory with it;
//   - the gate/up GEMM's 256 weight rows are one block of 128 neurons, so the two warpgroups
//     together know a row's largest neuron and store the row quantised.
#pragma once

#include <cuda_runtime.h>

#include "common/block_scan.cuh"
#include "common/e4m3_quantise.cuh"
#include "common/sm90_ptx.cuh"
#include "common/sm90_shared.cuh"
#include "common/wgmma_e4m3_sm90.cuh"
#include "experts/activation.cuh"
#include "experts/grouped_gemm_fp8_sm90.h"
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

struct Task {
  int expert;
  int weight_tile;
  int first_row;
  int rows;   // that exist
  int width;  // columns that are computed
};

// The experts' token tiles, in shared memory: [E] each.
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
      position.advance();
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
      position.advance();
    }
  }
}

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

// Adds the products of one block of K to the sums: times the rows' scales and the weights'.
template <int kColumns>
__device__ __forceinline__ void promote(float (&sums)[kColumns / 2],
                                        const float (&products)[kColumns / 2],
                                        uint32_t token_scales, float weight_scale) {
  const uint32_t first = token_scales + threadIdx.x % 4 * 8;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const float2 scale = ptx::load_shared_8(first + j * 32);
    const float even = scale.x * weight_scale;
    const float odd = scale.y * weight_scale;
    sums[4 * j] = fmaf(products[4 * j], even, sums[4 * j]);
    sums[4 * j + 1] = fmaf(products[4 * j + 1], odd, sums[4 * j + 1]);
    sums[4 * j + 2] = fmaf(products[4 * j + 2], even, sums[4 * j + 2]);
    sums[4 * j + 3] = fmaf(products[4 * j + 3], odd, sums[4 * j + 3]);
  }
}

// A task's main loop for a warpgroup's 128 weight rows, half of them (`parity`) at a time. See
// store_rows and store_neurons: which of the rows are whose.
template <bool kGateUp, int kColumns>
struct MainLoop {
  static constexpr int kGroupStride = kGateUp ? kGroupBytes : 2 * kGroupBytes;
  static constexpr int kSecond = (kGateUp ? kHalfWeightBytes / 2 : kGroupBytes) / 16;
  // Both halves' products fit into registers: one is added up while the other is computed.
  static constexpr bool kBothHalves = kColumns <= 88;

  const SharedLayout& shared;
  int group;

  template <int kParity>
  __device__ __forceinline__ void multiply(float (&products)[kColumns / 2], int stage) const {
    // In units of 16 bytes, as descriptors hold them.
    const uint32_t weights =
        (shared.weights(stage) + group * kHalfWeightBytes) / 16 + kParity * kSecond;
    const uint32_t tokens = shared.tokens(stage) / 16;
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStageDepth / 32; ++k) {
      const uint64_t a = ptx::operand_descriptor<kRowBytes, kGroupStride>(weights + k * 2);
      const uint64_t b = ptx::operand_descriptor<kRowBytes, kGroupBytes>(tokens + k * 2);
      if (k == 0) {
        wgmma_e4m3<kColumns, false>(products, a, b);
      } else {
        wgmma_e4m3<kColumns, true>(products, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  template <int kParity>
  __device__ __forceinline__ void add(float (&sums)[kColumns / 2],
                                      const float (&products)[kColumns / 2], int stage) const {
    const int which = kGateUp ? kParity : group;
    const float weight_scale = ptx::load_shared_4(shared.weight_scales(stage) + 4 * which);
    promote<kColumns>(sums, products, shared.token_scales(stage), weight_scale);
  }

  __device__ __forceinline__ void run(float (&sums)[2][kColumns / 2], int k_blocks,
                                      RingPosition& position) const {
    if constexpr (kBothHalves) {
      float products[2][kColumns / 2];
      for (int k_block = 0; k_block < k_blocks; ++k_block) {
        wait_full<kGateUp>(shared, position);
        multiply<0>(products[0], position.stage);
        multiply<1>(products[1], position.stage);
        ptx::wgmma_wait<1>();
        add<0>(sums[0], products[0], position.stage);
        ptx::wgmma_wait<0>();
        add<1>(sums[1], products[1], position.stage);
        release(shared, position.stage);
        position.advance();
      }
    } else {
      // The other warpgroup keeps the tensor cores busy while this one adds.
      float products[kColumns / 2];
      for (int k_block = 0; k_block < k_blocks; ++k_block) {
        wait_full<kGateUp>(shared, position);
        multiply<0>(products, position.stage);
        ptx::wgmma_wait<0>();
        add<0>(sums[0], products, position.stage);
        multiply<1>(products, position.stage);
        ptx::wgmma_wait<0>();
        add<1>(sums[1], products, position.stage);
        release(shared, position.stage);
        position.advance();
      }
    }
  }
};

// Stores a gate/up task's neurons, quantised. A warpgroup's sums[0] has the gate rows and sums[1]
// the up rows of the same 64 neurons, of the 128 that share a scale; both warpgroups meet to find
// it. `slot` counts the tasks modulo kLargestBuffers.
template <int kColumns>
__device__ __forceinline__ void store_neurons(const KernelArgs& args, const SharedLayout& shared,
                                              const Task& task, float (&sums)[2][kColumns / 2],
                                              int group, int slot) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int thread = threadIdx.x % 128;
  const uint32_t largest = shared.epilogue() + kLargestOffset;
  const uint32_t inverse = shared.epilogue() + kInverseOffset + group * kTokenScaleBytes;
  const uint32_t neurons = shared.epilogue() + group * kNeuronBytes;
  const Activation activation = args.gemm.activation;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[0][4 * j + i] = activate(sums[0][4 * j + i], sums[1][4 * j + i], activation);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = fmaxf(fabsf(sums[0][4 * j + i]), fabsf(sums[0][4 * j + 2 + i]));
#pragma unroll
      for (int distance = 4; distance < kWarpSize; distance *= 2) {
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, distance));
      }
      // Floats of one sign are in the order of their bits.
      if (lane < 4) {
        ptx::max_shared(largest + slot * kTokenScaleBytes + (8 * j + 2 * lane + i) * 4,
                        __float_as_uint(most));
      }
    }
  }
  ptx::named_barrier_sync(kConsumersBarrier, kConsumerWarps * kWarpSize);
  if (group == 0) {
    // NOTE: the next task but one's, which nobody fills before the next meeting, and which was last
    // read before this one. All of it: that task may be wider than this one.
    const int after_next = slot == 0 ? kLargestBuffers - 1 : slot - 1;
    ptx::store_shared_4(largest + after_next * kTokenScaleBytes + 4 * thread, 0.0f);
  }
  if (thread < kColumns) {
    const GroupScale scale =
        group_scale(ptx::load_shared_4(largest + slot * kTokenScaleBytes + 4 * thread));
    ptx::store_shared_4(inverse + 4 * thread, scale.inverse);
    if (group == 0 && thread < task.rows) {
      args.token_scale[task.weight_tile * args.token_scale_stride + task.first_row + thread] =
          scale.scale;
    }
  }
  ptx::named_barrier_sync(kWarpgroupBarrier + group, 128);
  // The lane's neurons of columns 8j + 2 * (lane % 4) and the next: 16 * warp + lane / 4, and 8 on.
  const uint32_t write_at = neurons + lane % 4 * 2 * kNeuronRowBytes + warp * 16 + lane / 4;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const float2 by = ptx::load_shared_8(inverse + j * 32 + lane % 4 * 8);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair =
          to_e4m3(sums[0][4 * j + 2 * half] * by.x, sums[0][4 * j + 2 * half + 1] * by.y);
      const uint32_t at = write_at + j * 8 * kNeuronRowBytes + half * 8;
      ptx::store_shared_1(at, pair);
      ptx::store_shared_1(at + kNeuronRowBytes, pair >> 8);
    }
  }
  ptx::named_barrier_sync(kWarpgroupBarrier + group, 128);
  const int chunk = thread % 4;
  const int column = task.weight_tile * kFp8Block + group * 64 + chunk * 16;
  uint8_t* out = args.neurons + static_cast<int64_t>(task.first_row) * args.out_columns + column;
  for (int row = thread / 4; row < task.rows; row += 32) {
    *reinterpret_cast<uint4*>(out + static_cast<int64_t>(row) * args.out_columns) =
        ptx::load_shared_16(neurons + row * kNeuronRowBytes + chunk * 16);
  }
}

// Stores a down task's rows. Of a warpgroup's 128 weight rows, sums[0] has the even 8-row groups
// and sums[1] the odd ones, so a warp holds 32 adjacent ones and stores whole sectors. An 8x8 block
// is turned by stmatrix, so that a lane gets 8 adjacent outputs of one row.
template <int kColumns>
__device__ __forceinline__ void store_rows(const KernelArgs& args, const SharedLayout& shared,
                                           const Task& task, const float (&sums)[2][kColumns / 2],
                                           int group) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize % 4;
  const int matrix = lane / 8;
  const uint32_t transpose = shared.epilogue() + (4 * group + warp) * 2 * kTransposeBytes;
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

}  // namespace layered_sglang::grouped_gemm_fp8

#include "experts/grouped_gemm_fp8_wide.cuh"

namespace layered_sglang::grouped_gemm_fp8 {

// A warpgroup's share of one task: 128 weight rows.
template <bool kGateUp, int kColumns>
__device__ __forceinline__ void compute_task(const KernelArgs& args, const SharedLayout& shared,
                                             const Task& task, int group, int index,
                                             RingPosition& position) {
  float sums[2][kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) sums[0][i] = sums[1][i] = 0.0f;
  MainLoop<kGateUp, kColumns>{shared, group}.run(sums, args.k_blocks, position);
  if constexpr (kGateUp) {
    const int round = index / static_cast<int>(gridDim.x);
    store_neurons<kColumns>(args, shared, task, sums, group, round % kLargestBuffers);
  } else {
    store_rows<kColumns>(args, shared, task, sums, group);
  }
}

template <bool kGateUp, bool kWide>
__device__ __forceinline__ void run_consumers(const KernelArgs& args, const SharedLayout& shared,
                                              const TileTable& table) {
  const int group = threadIdx.x / 128 - 1;
  RingPosition position;
  for (int index = blockIdx.x; index < task_count(table, args); index += gridDim.x) {
    const Task task = find_task<kWide>(table, args, index);
    if constexpr (kWide) {
      compute_wide_task<kGateUp>(args, shared, task, group, position);
    } else {
#define LS_CASE(columns)                                                        \
  case columns / 8:                                                             \
    compute_task<kGateUp, columns>(args, shared, task, group, index, position); \
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
      }
#undef LS_CASE
    }
  }
}

template <bool kGateUp, bool kWide>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_gemm_fp8(const __grid_constant__ CUtensorMap weight_map,
                     const __grid_constant__ CUtensorMap token_map,
                     const __grid_constant__ KernelArgs args) {
  extern __shared__ uint8_t shared_memory[];
  uint8_t* aligned = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(shared_memory) + 1023) & ~uintptr_t{1023});
  const SharedLayout shared = {ptx::shared_address(aligned)};
  TileTable table;
  table.tile_end = reinterpret_cast<int*>(aligned + kTileTable);
  table.offset = table.tile_end + args.gemm.num_experts;
  table.count = table.offset + args.gemm.num_experts;

  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&weight_map);
    if (!kGateUp) ptx::prefetch_tensor_map(&token_map);
    for (int stage = 0; stage < kStages; ++stage) {
      // The bytes' arrival, and those of the threads that copy with cp.async.
      ptx::barrier_init(shared.full_barrier(stage), 1 + (kGateUp ? kProducerThreads : kWarpSize));
      ptx::barrier_init(shared.empty_barrier(stage), kConsumerWarps);
    }
    ptx::barrier_init_fence();
  }
  if (kGateUp && threadIdx.x < kLargestBuffers * kStageRows) {
    ptx::store_shared_4(shared.epilogue() + kLargestOffset + 4 * threadIdx.x, 0.0f);
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
    ptx::launch_dependents();
  }
  fill_table<kWide>(args.gemm, table);
  if (threadIdx.x < kProducerThreads) {
    ptx::lower_registers<kProducerRegisters<kGateUp>>();
    if constexpr (kGateUp) {
      run_gather_warps<kWide>(&weight_map, args, shared, table);
    } else if (threadIdx.x < kWarpSize) {
      run_copy_warp<kWide>(&weight_map, &token_map, args, shared, table);
    }
  } else {
    ptx::raise_registers<kConsumerRegisters<kGateUp>>();
    run_consumers<kGateUp, kWide>(args, shared, table);
  }
}

static_assert(kLargestBuffers * kStageRows <= kThreads, "cleared by one thread each");

}  // namespace layered_sglang::grouped_gemm_fp8
