// The part that both paths of the plan share: each pair's rank among its expert's pairs.
#pragma once

#include <cstdint>

#include "common/block_scan.cuh"
#include "plan/expert_plan_layout.h"

namespace layered_sglang {

// The expert of a flat pair. Ids outside [0, E) and pairs outside [0, end) become E, the bucket of
// those that get no row, so no id can index out of bounds.
__device__ __forceinline__ int load_expert(const ExpertPlanArgs& args, int pair, int end) {
  const int id = pair < end ? args.topk_ids[pair] : -1;
  return static_cast<unsigned>(id) < static_cast<unsigned>(args.num_experts) ? id
                                                                             : args.num_experts;
}

__device__ __forceinline__ int round_up_rows(int count, int row_alignment) {
  return (count + row_alignment - 1) / row_alignment * row_alignment;
}

// Lanes whose key equals this lane's, from one ballot per bit; keys are in [0, 2^key_bits).
// Ballots cost the same whatever the keys are, and those of several items overlap.
__device__ __forceinline__ unsigned lanes_with_same_key(int key, int key_bits) {
  unsigned same = kAllLanes;
  for (int bit = 0; bit < key_bits; ++bit) {
    const bool is_set = (key >> bit) & 1;
    const unsigned set_lanes = __ballot_sync(kAllLanes, is_set);
    same &= is_set ? set_lanes : ~set_lanes;
  }
  return same;
}

// Ranks a warp's pairs within their expert. Item i of lane l is the warp's pair i * 32 + l, so the
// ranks follow the flat index. `warp_counts` (shared, [E], zeroed) ends as the warp's histogram.
template <int kItems>
__device__ __forceinline__ void rank_in_warp(const int (&expert)[kItems], int num_experts,
                                             uint16_t* warp_counts, int (&rank)[kItems]) {
  const unsigned lanes_below = (1u << (threadIdx.x % kWarpSize)) - 1;
  const int key_bits = kWarpSize - __clz(num_experts);  // the bucket E must be a key, too

  unsigned same[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) same[i] = lanes_with_same_key(expert[i], key_bits);

#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const bool has_row = expert[i] < num_experts;
    const int before = has_row ? warp_counts[expert[i]] : 0;
    rank[i] = before + __popc(same[i] & lanes_below);
    __syncwarp();
    const bool is_first = (same[i] & lanes_below) == 0;
    if (has_row && is_first) {
      warp_counts[expert[i]] = static_cast<uint16_t>(before + __popc(same[i]));
    }
    __syncwarp();
  }
}

// Turns the warps' histograms [num_warps, E] into exclusive prefixes over the warps, in place, and
// returns the block's count of expert threadIdx.x (0 for threads beyond the experts).
// The block synchronises before and after it; blockDim.x >= E.
__device__ __forceinline__ int scan_over_warps(uint16_t* warp_counts, int num_warps,
                                               int num_experts) {
  int sum = 0;
  if (threadIdx.x < num_experts) {
#pragma unroll 8
    for (int warp = 0; warp < num_warps; ++warp) {
      uint16_t& entry = warp_counts[warp * num_experts + threadIdx.x];
      const int count = entry;
      entry = static_cast<uint16_t>(sum);
      sum += count;
    }
  }
  return sum;
}

}  // namespace layered_sglang
