// e2m1 values to bf16 in registers: a word of eight and the factors of its rows' scales.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "experts/mxfp4_layout.h"

namespace layered_sglang {

// The scales of group 0 or 1 of a thread's two rows, h in half h: 2^(e8m0 - 1) as a bf16, which is
// the scale 2^(e8m0 - 127) times the 2^126 that an expanded value lacks.
__device__ __forceinline__ uint32_t mxfp4_factors(uint32_t scales, int group) {
  return (group == 0 ? scales : __funnelshift_l(scales, scales, 8)) & 0x7F807F80;
}

// Both halves of `pair` times half `kHalf` of `factors`, which costs no instruction to pick.
template <int kHalf>
__device__ __forceinline__ uint32_t multiply_bf16_pair(uint32_t pair, uint32_t factors) {
  const auto both = *reinterpret_cast<const __nv_bfloat162*>(&factors);
  const __nv_bfloat162 product =
      __hmul2_rn(*reinterpret_cast<const __nv_bfloat162*>(&pair),
                 kHalf == 0 ? __low2bfloat162(both) : __high2bfloat162(both));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// A word's eight values as wgmma's A registers; `factors` are those of the rows h = 0 and 1.
// Placed in a bf16's sign, lowest exponent bits and highest mantissa bit, the bits of an e2m1 value
// are that value * 2^-126, subnormal ones included: the product with a power of two is exact.
__device__ __forceinline__ void expand_mxfp4(uint32_t word, uint32_t factors, uint32_t (&a)[4]) {
  constexpr uint32_t kBits = 0x81C081C0;
  // Instructions are what these kernels are short of: hence a rotation that serves two pairs, and
  // a product for three shifts (by 3, 8 and 14; no two bits meet).
  const uint32_t turned = __funnelshift_l(word, word, 6);
  const uint32_t fourth = (turned & 0x001B001B) * 0x4108;
  a[0] = multiply_bf16_pair<0>(word & kBits, factors);
  a[1] = multiply_bf16_pair<1>(word << 3 & kBits, factors);
  a[2] = multiply_bf16_pair<0>(turned & kBits, factors);
  a[3] = multiply_bf16_pair<1>(fourth & kBits, factors);
}

}  // namespace layered_sglang
