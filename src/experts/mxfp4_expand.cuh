// e2m1 values to bf16 in registers: a word of eight and the factors of its rows' scales.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "experts/mxfp4_layout.h"

namespace layered_sglang {

// Half `scale` (0 ... 3) of a thread's four scale bytes as a bf16 pair. Both halves are
// 2^(e8m0 - 1), which is the scale 2^(e8m0 - 127) times the 2^126 that an expanded value lacks.
__device__ __forceinline__ uint32_t mxfp4_factor(uint32_t scales, int scale) {
  // The byte in bits 0 ... 7 and 16 ... 23; an exponent field begins 7 higher. (A shift to the left
  // can be a multiplication, which is not the pipe that the expansion fills.)
  return __byte_perm(scales, 0, 0x4040 | scale | scale << 8) << 7;
}

__device__ __forceinline__ uint32_t multiply_bf16_pairs(uint32_t a, uint32_t b) {
  uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}

// A word's eight values as wgmma's A registers; `factors` are those of the rows h = 0 and 1.
// Placed in a bf16's sign, lowest exponent bits and highest mantissa bit, the bits of an e2m1 value
// are that value * 2^-126, subnormal ones included: the product with a power of two is exact.
__device__ __forceinline__ void expand_mxfp4(uint32_t word, const uint32_t (&factors)[2],
                                             uint32_t (&a)[4]) {
  constexpr uint32_t kBits = 0x81C081C0;
  const uint32_t fourth =
      (word << 1 & 0x80008000) | (word >> 3 & 0x01800180) | (word >> 7 & 0x00400040);
  a[0] = multiply_bf16_pairs(word & kBits, factors[0]);
  a[1] = multiply_bf16_pairs(word << 3 & kBits, factors[1]);
  a[2] = multiply_bf16_pairs(word << 6 & kBits, factors[0]);
  a[3] = multiply_bf16_pairs(fourth, factors[1]);
}

}  // namespace layered_sglang
