// Float to e4m3 (fp8, 4 bits of exponent, 3 of mantissa) with one scale for a group of 128.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "experts/fused_experts_fp8_layout.h"

namespace layered_sglang {

// A group's values are stored as value / scale, rounded to e4m3.
struct GroupScale {
  float scale;
  float inverse;
};

// `largest` is the group's largest magnitude.
__device__ __forceinline__ GroupScale group_scale(float largest) {
  const float limited = fmaxf(largest, kFp8SmallestGroup);
  return {limited * (1.0f / kFp8Largest), __fdiv_rn(kFp8Largest, limited)};
}

// Two values in two bytes, the first in the low one. Values beyond e4m3, and NaN, become its
// largest.
__device__ __forceinline__ uint16_t to_e4m3(float first, float second) {
  return __nv_cvt_float2_to_fp8x2(
      make_float2(fminf(first, kFp8Largest), fminf(second, kFp8Largest)), __NV_SATFINITE,
      __NV_E4M3);
}

}  // namespace layered_sglang
