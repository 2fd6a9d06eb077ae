// What the warps of the MXFP4 stream kernel share: its shape, shared memory, and the row blocks
// that a block of its grid takes.
#pragma once

#include "experts/mxfp4_tasks.cuh"

namespace layered_sglang::stream_gemm_mxfp4 {

using grouped_gemm_mxfp4::KernelArgs;

inline constexpr int kWarps = 16;                          // that divide K
inline constexpr int kThreads = (kWarps + 4) * kWarpSize;  // registers go to groups of four warps
inline constexpr int kSchedulerRegisters = 32;
inline constexpr int kRegisters = 112;
static_assert(4 * kSchedulerRegisters + kWarps * kRegisters <=
              65536 / kThreads / 8 * 8 * (kWarps + 4));
inline constexpr int kSlices = 4;  // of a row block, of 16 rows
inline constexpr int kReducers = kSlices;
inline constexpr int kMostParts = kMxfp4StreamBlocks / kWarps;  // K blocks of a warp
inline constexpr int kMostTiles = kMxfp4StreamTileTokens / 8;   // wide products
inline constexpr int kKnown = 8;                                // row blocks that are announced
inline constexpr int kFixedEighths = 5;                         // of all row blocks, shared equally
inline constexpr int kPieceBlocks = 2;                          // row blocks of a piece of the rest
inline constexpr int kFewestShared = 8;  // row blocks for a block; of fewer, all are shared equally

// A row block of a token tile.
struct alignas(16) RowBlock {
  int expert;
  int weight_tile;
  int first_row;  // of all rows, so no two token tiles have the same
  int rows;       // 0 behind the last row block
};

// Shared memory: the warps' rings, a stage for each K block of a warp's part; their sums; their
// space for transposition; row blocks announced; the expert table; barriers.
inline constexpr int kRingBytes = kMostParts * kMxfp4BlockBytes;
inline constexpr int kTileSumBytes = kWarpSize * 16;  // of a slice's 8 tokens
inline constexpr int kSumBytes = kSlices * kMostTiles * kTileSumBytes;
inline constexpr int kSums = kWarps * kRingBytes;
inline constexpr int kTranspose = kSums + kWarps * kSumBytes;
inline constexpr int kAnnounced = kTranspose + kWarps * grouped_gemm_mxfp4::kTransposeBytes;
inline constexpr int kTable = kAnnounced + kKnown * sizeof(RowBlock);
inline constexpr int kBarriers = kTable + (kMaxPlanExperts + 1) * sizeof(Expert);
inline constexpr int kSharedBytes = kBarriers + 8 * (kWarps * kMostParts + 2 * kKnown + 2);
static_assert(kSharedBytes <= 227 * 1024);

struct Layout {
  uint32_t start;
  __device__ __forceinline__ uint32_t weights(int warp, int stage) const {
    return start + warp * kRingBytes + stage * kMxfp4BlockBytes;
  }
  __device__ __forceinline__ uint32_t sums(int warp, int slice, int tile) const {
    return start + kSums + warp * kSumBytes + (slice * kMostTiles + tile) * kTileSumBytes;
  }
  __device__ __forceinline__ uint32_t transpose(int warp) const {
    return start + kTranspose + warp * grouped_gemm_mxfp4::kTransposeBytes;
  }
  __device__ __forceinline__ uint32_t row_block(int number) const {
    return start + kAnnounced + number % kKnown * sizeof(RowBlock);
  }
  __device__ __forceinline__ uint32_t full(int warp, int stage) const {
    return start + kBarriers + 8 * (warp * kMostParts + stage);
  }
  __device__ __forceinline__ uint32_t announced(int number) const {
    return full(kWarps, 0) + 8 * (number % kKnown);
  }
  // All warps have their sums of this row block in shared memory.
  __device__ __forceinline__ uint32_t summed(int number) const {
    return announced(number) + 8 * kKnown;
  }
  __device__ __forceinline__ uint32_t sums_full() const { return full(kWarps, 0) + 16 * kKnown; }
  __device__ __forceinline__ uint32_t sums_empty() const { return sums_full() + 8; }
};

// Row block `number` of this block of the grid, waiting until it is announced.
__device__ __forceinline__ RowBlock row_block(const Layout& shared, int number) {
  ptx::barrier_wait(shared.announced(number), number / kKnown % 2);
  const uint4 at = ptx::load_shared_16(shared.row_block(number));
  return {static_cast<int>(at.x), static_cast<int>(at.y), static_cast<int>(at.z),
          static_cast<int>(at.w)};
}

// Warp 16.
struct Scheduler {
  const KernelArgs& args;
  const Expert* table;
  const Layout& shared;
  int number = 0;  // of row blocks announced

  __device__ __forceinline__ void run() {
    const int total = table[args.gemm.num_experts].first_tile * args.row_blocks;
    const int fixed = total < kFewestShared * static_cast<int>(gridDim.x)
                          ? total
                          : static_cast<int>(static_cast<int64_t>(total) * kFixedEighths / 8);
    const int chunk = max(fixed / static_cast<int>(gridDim.x), 1);
    int first = static_cast<int>(static_cast<int64_t>(fixed) * blockIdx.x / gridDim.x);
    int end = static_cast<int>(static_cast<int64_t>(fixed) * (blockIdx.x + 1) / gridDim.x);
    while (first < total) {
      for (int index = first; index < end; ++index) {
        const Task task =
            find_task(table, args.gemm.num_experts, args.row_blocks, index,
                      [&](int within, int tiles, int rows) {
                        return place_mxfp4_stream_task(within, tiles, rows, args.row_blocks, chunk);
                      });
        announce({task.expert, task.weight_tile, task.first_row, task.rows});
      }
      int taken = 0;
      if (threadIdx.x % kWarpSize == 0) taken = atomicAdd(args.next_piece, 1);
      first = fixed + __shfl_sync(kAllLanes, taken, 0) * kPieceBlocks;
      end = min(first + kPieceBlocks, total);
    }
    announce({0, 0, 0, 0});
  }

  __device__ __forceinline__ void announce(const RowBlock& at) {
    // All warps have to be done with the row block that was in its place: they are, and have stored
    // its rows, once they have the sums of the second one after it.
    const int after = number - kKnown + 2;
    if (after >= 0) ptx::barrier_wait(shared.summed(after), after / kKnown % 2);
    if (threadIdx.x % kWarpSize == 0) {
      ptx::store_shared_16(shared.row_block(number),
                           make_uint4(at.expert, at.weight_tile, at.first_row, at.rows));
      ptx::barrier_arrive(shared.announced(number));
    }
    __syncwarp();
    ++number;
  }
};

}  // namespace layered_sglang::stream_gemm_mxfp4
