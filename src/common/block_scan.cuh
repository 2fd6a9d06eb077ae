// Prefix sums within a warp and a block.
#pragma once

namespace layered_sglang {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr int kWarpSize = 32;

__device__ __forceinline__ int warp_inclusive_scan(int value, int lane) {
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int below = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

// Exclusive prefix sum over the block's threads; `total` gets the sum of all.
// Every thread calls it; blockDim.x is a multiple of 32. `warp_totals` is shared [32].
// NOTE: the block must synchronise before warp_totals is used again.
__device__ __forceinline__ int block_exclusive_scan(int value, int* warp_totals, int* total) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int inclusive = warp_inclusive_scan(value, lane);
  if (lane == kWarpSize - 1) warp_totals[warp] = inclusive;
  __syncthreads();

  // Each warp scans the warp totals for itself, which saves a second barrier.
  const int num_warps = blockDim.x / kWarpSize;
  const int warp_total = lane < num_warps ? warp_totals[lane] : 0;
  const int warps_inclusive = warp_inclusive_scan(warp_total, lane);
  const int warps_exclusive = warps_inclusive - warp_total;
  *total = __shfl_sync(kAllLanes, warps_inclusive, kWarpSize - 1);
  return __shfl_sync(kAllLanes, warps_exclusive, warp) + inclusive - value;
}

}  // namespace layered_sglang
