// wgmma: accumulator [64, kColumns] fp32 (+)= A [64, 32] e4m3 * B [kColumns, 32]^T e4m3, both in
// shared memory with K contiguous (ptx::operand_descriptor). The accumulator's elements lie as in
// common/wgmma_bf16_sm90.cuh.
//
// The tensor cores add fp8 products with fewer bits than fp32 has, so sums over long K are to be
// taken out and added in fp32 (here every 128 of K, with their scales).
#pragma once

#include <cstdint>

namespace layered_sglang {

// kAccumulate: adds to d; otherwise d's former contents do not matter.
template <int kColumns, bool kAccumulate>
__device__ __forceinline__ void wgmma_e4m3(float (&d)[kColumns / 2], uint64_t a, uint64_t b);

// The registers of 8 columns as operands, and all registers' names in the instruction.
#define LS_D4(io, i) io(d[i]), io(d[i + 1]), io(d[i + 2]), io(d[i + 3])
#define LS_D8(io, i) LS_D4(io, i), LS_D4(io, i + 4)
#define LS_D16(io, i) LS_D8(io, i), LS_D8(io, i + 8)
#define LS_D32(io, i) LS_D16(io, i), LS_D16(io, i + 16)
#define LS_READ_WRITE "+f"
#define LS_WRITE "=f"
#define LS_N8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LS_N16 LS_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LS_N24 LS_N16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define LS_N32 LS_N24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define LS_N36 LS_N32 ", %32, %33, %34, %35"
#define LS_N40 LS_N36 ", %36, %37, %38, %39"
#define LS_N44 LS_N40 ", %40, %41, %42, %43"
#define LS_N48 LS_N44 ", %44, %45, %46, %47"
#define LS_N52 LS_N48 ", %48, %49, %50, %51"
#define LS_N56 LS_N52 ", %52, %53, %54, %55"
#define LS_N60 LS_N56 ", %56, %57, %58, %59"
#define LS_N64 LS_N60 ", %60, %61, %62, %63"

#define LS_WGMMA(columns, names, a_name, b_name, operands)                                        \
  template <>                                                                                     \
  __device__ __forceinline__ void wgmma_e4m3<columns, true>(float (&d)[columns / 2], uint64_t a,  \
                                                            uint64_t b) {                         \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k32.f32.e4m3.e4m3 {" names         \
                 "}, " a_name ", " b_name ", 1, 1, 1;\n"                                          \
                 : operands(LS_READ_WRITE)                                                        \
                 : "l"(a), "l"(b));                                                               \
  }                                                                                               \
  template <>                                                                                     \
  __device__ __forceinline__ void wgmma_e4m3<columns, false>(float (&d)[columns / 2], uint64_t a, \
                                                             uint64_t b) {                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k32.f32.e4m3.e4m3 {" names         \
                 "}, " a_name ", " b_name ", 0, 1, 1;\n"                                          \
                 : operands(LS_WRITE)                                                             \
                 : "l"(a), "l"(b));                                                               \
  }

#define LS_OPERANDS16(io) LS_D8(io, 0)
#define LS_OPERANDS32(io) LS_D16(io, 0)
#define LS_OPERANDS48(io) LS_D16(io, 0), LS_D8(io, 16)
#define LS_OPERANDS64(io) LS_D32(io, 0)
#define LS_OPERANDS72(io) LS_D32(io, 0), LS_D4(io, 32)
#define LS_OPERANDS80(io) LS_D32(io, 0), LS_D8(io, 32)
#define LS_OPERANDS88(io) LS_D32(io, 0), LS_D8(io, 32), LS_D4(io, 40)
#define LS_OPERANDS96(io) LS_D32(io, 0), LS_D16(io, 32)
#define LS_OPERANDS104(io) LS_D32(io, 0), LS_D16(io, 32), LS_D4(io, 48)
#define LS_OPERANDS112(io) LS_D32(io, 0), LS_D16(io, 32), LS_D8(io, 48)
#define LS_OPERANDS120(io) LS_D32(io, 0), LS_D16(io, 32), LS_D8(io, 48), LS_D4(io, 56)
#define LS_OPERANDS128(io) LS_D32(io, 0), LS_D32(io, 32)

LS_WGMMA(16, LS_N8, "%8", "%9", LS_OPERANDS16)
LS_WGMMA(32, LS_N16, "%16", "%17", LS_OPERANDS32)
LS_WGMMA(48, LS_N24, "%24", "%25", LS_OPERANDS48)
LS_WGMMA(64, LS_N32, "%32", "%33", LS_OPERANDS64)
LS_WGMMA(72, LS_N36, "%36", "%37", LS_OPERANDS72)
LS_WGMMA(80, LS_N40, "%40", "%41", LS_OPERANDS80)
LS_WGMMA(88, LS_N44, "%44", "%45", LS_OPERANDS88)
LS_WGMMA(96, LS_N48, "%48", "%49", LS_OPERANDS96)
LS_WGMMA(104, LS_N52, "%52", "%53", LS_OPERANDS104)
LS_WGMMA(112, LS_N56, "%56", "%57", LS_OPERANDS112)
LS_WGMMA(120, LS_N60, "%60", "%61", LS_OPERANDS120)
LS_WGMMA(128, LS_N64, "%64", "%65", LS_OPERANDS128)

#undef LS_WGMMA
#undef LS_D4
#undef LS_D8
#undef LS_D16
#undef LS_D32
#undef LS_READ_WRITE
#undef LS_WRITE
#undef LS_N8
#undef LS_N16
#undef LS_N24
#undef LS_N32
#undef LS_N36
#undef LS_N40
#undef LS_N44
#undef LS_N48
#undef LS_N52
#undef LS_N56
#undef LS_N60
#undef LS_N64
#undef LS_OPERANDS16
#undef LS_OPERANDS32
#undef LS_OPERANDS48
#undef LS_OPERANDS64
#undef LS_OPERANDS72
#undef LS_OPERANDS80
#undef LS_OPERANDS88
#undef LS_OPERANDS96
#undef LS_OPERANDS104
#undef LS_OPERANDS112
#undef LS_OPERANDS120
#undef LS_OPERANDS128

}  // namespace layered_sglang
