// Eight bf16 in a 16-byte register quadruple, computed with in fp32.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace layered_sglang {

__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

__device__ __forceinline__ void add_scaled(const uint4& values, float scale, float (&sum)[8]) {
  const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_bf16(pairs[i]);
    sum[2 * i] = fmaf(scale, pair.x, sum[2 * i]);
    sum[2 * i + 1] = fmaf(scale, pair.y, sum[2 * i + 1]);
  }
}

__device__ __forceinline__ float add_dot(const uint4& a, const uint4& b, float sum) {
  const uint32_t a_pairs[4] = {a.x, a.y, a.z, a.w};
  const uint32_t b_pairs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 left = unpack_bf16(a_pairs[i]);
    const float2 right = unpack_bf16(b_pairs[i]);
    sum = fmaf(left.x, right.x, sum);
    sum = fmaf(left.y, right.y, sum);
  }
  return sum;
}

__device__ __forceinline__ uint4 round_to_bf16(const float (&values)[8]) {
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[2 * i], values[2 * i + 1]);
    pairs[i] = *reinterpret_cast<const uint32_t*>(&pair);
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Streams 16 bytes of weights, which no one else will read soon.
__device__ __forceinline__ uint4 load_streaming(const uint4* address) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

// Loads 16 bytes that an overlapping kernel may have written: past the L1, and in program order
// among its like, so that a batch of them is under way before the first use.
__device__ __forceinline__ uint4 load_written(const uint4* address) {
  uint4 value;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

}  // namespace layered_sglang
