// The weighted sum of a token's expert rows, for the combine kernel and for the down GEMM.
#pragma once

#include "common/bf16_vector.cuh"
#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "experts/combine_bf16_sm90.h"

namespace layered_sglang {

// y[token, 8 * chunk ...]: 8 adjacent elements, summed in the order of the slots whatever
// kSlotsAtOnce, the loads of a thread under way together. A warp calls it for one token; a lane
// whose chunk is not `exists` takes part in the exchange only.
template <int kSlotsAtOnce>
__device__ __forceinline__ void combine_chunk(const CombineArgs& args, int64_t token, int chunk,
                                              bool exists) {
  const int lane = threadIdx.x % kWarpSize;
  float sum[8] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    // Lane i fetches slot i for the whole warp.
    const bool is_slot = lane < kSlotsAtOnce && first + lane < args.top_k;
    const int64_t slot = token * args.top_k + first + lane;
    const int slot_row = is_slot ? __ldcg(args.inverse_rows + slot) : -1;
    const float slot_weight = is_slot ? args.topk_weights[slot] : 0.0f;
    uint4 value[kSlotsAtOnce];
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      const int row = __shfl_sync(kAllLanes, slot_row, i);
      value[i] = make_uint4(0, 0, 0, 0);
      if (row >= 0 && exists) {
        value[i] = load_written(
            reinterpret_cast<const uint4*>(args.rows + static_cast<int64_t>(row) * args.hidden) +
            chunk);
      }
    }
    ptx::keep_loads_above(args.num_tokens > 0);
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      add_scaled(value[i], __shfl_sync(kAllLanes, slot_weight, i), sum);
    }
  }
#pragma unroll
  for (float& element : sum) element *= args.routed_scaling_factor;
  if (exists) {
    reinterpret_cast<uint4*>(args.y + token * args.hidden)[chunk] = round_to_bf16(sum);
  }
}

}  // namespace layered_sglang
