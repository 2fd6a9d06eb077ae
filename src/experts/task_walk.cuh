// How the roles of a persistent grouped GEMM walk the same tasks, each on its own: a table of the
// experts' rows and token tiles in shared memory, and their place in a ring of stages.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/block_scan.cuh"

namespace layered_sglang {

struct Task {
  int expert;
  int weight_tile;
  int first_row;
  int rows;   // that exist; 0 or less for an empty tile of a pair
  int width;  // columns that are computed
};

// An entry of the table [E + 1], of which the last one says where all end.
struct alignas(8) Expert {
  int first_row;
  int first_tile;  // token tiles of the experts before it, as tasks count them
};

// Fills the table; the whole block calls it. `Table` has operator[], `tile_count(rows)` gives an
// expert's token tiles. expert_offsets: int32 [E + 1], of rows that are not padded.
template <int kThreads, typename Table, typename TileCount>
__device__ __forceinline__ void fill_expert_table(const int32_t* expert_offsets, int num_experts,
                                                  const Table& table, TileCount tile_count) {
  for (int e = threadIdx.x; e <= num_experts; e += kThreads) {
    // NOTE: written by a kernel that may overlap this one, so never through the read-only cache.
    table[e].first_row = __ldcg(expert_offsets + e);
  }
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    int before = 0;
    for (int first = 0; first < num_experts; first += kWarpSize) {
      const int e = first + threadIdx.x;
      const bool exists = e < num_experts;
      const int rows = exists ? table[e + 1].first_row - table[e].first_row : 0;
      const int end = before + warp_inclusive_scan(tile_count(rows), threadIdx.x);
      if (exists) table[e + 1].first_tile = end;
      before = __shfl_sync(kAllLanes, end, kWarpSize - 1);
    }
    if (threadIdx.x == 0) table[0].first_tile = 0;
  }
  __syncthreads();
}

// Task `index` of all; a whole warp calls it. Tasks go expert by expert, and within one by weight
// tile, so that the blocks that run at one time share weights and tokens in the L2.
// weight_tiles: of an expert. `place(within, tiles, rows)` gives the TaskPlace of an expert's task.
template <typename Table, typename Place>
__device__ __forceinline__ Task find_task(const Table& table, int num_experts, int weight_tiles,
                                          int index, Place place_of) {
  int experts_before = 0;
#pragma unroll 1  // there are few registers for it
  for (int e = threadIdx.x % kWarpSize; e < num_experts; e += kWarpSize) {
    experts_before += table[e + 1].first_tile * weight_tiles <= index;
  }
  Task task;
  task.expert = __reduce_add_sync(kAllLanes, experts_before);
  const Expert expert = table[task.expert];
  const Expert next = table[task.expert + 1];
  const auto place =
      place_of(index - expert.first_tile * weight_tiles, next.first_tile - expert.first_tile,
               next.first_row - expert.first_row);
  task.weight_tile = place.weight_tile;
  task.width = place.width;
  task.first_row = expert.first_row + place.first_row;
  task.rows = place.rows;
  return task;
}

// A stage of the ring and the parity of its current round. `stages`: of the ring.
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

}  // namespace layered_sglang
