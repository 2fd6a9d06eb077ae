// wgmma: accumulator [64, kColumns] fp32 += A [64, 16] bf16 * B [kColumns, 16]^T bf16, both in
// shared memory with K contiguous (ptx::operand_descriptor), or A in registers.
//
// The accumulator's elements of a thread: columns come in blocks of 8; block j of lane l in warp w
// holds at [4 * j + 2 * h + i] row 16 * w + 8 * h + l / 4, column 8 * j + 2 * (l % 4) + i.
// A in registers: a[2 * c + h] of lane l in warp w holds row 16 * w + 8 * h + l / 4 and of K
// 8 * c + 2 * (l % 4) in its low half, the next in its high half. They must stay as they are until
// the product has been waited for.
#pragma once

#include <cstdint>

namespace layered_sglang {

template <int kColumns>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kColumns / 2], uint64_t a, uint64_t b);
template <int kColumns>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kColumns / 2], const uint32_t (&a)[4],
                                           uint64_t b);

// The registers of 8 columns as operands, and all registers' names in the instruction.
#define LS_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define LS_D8(i) LS_D4(i), LS_D4(i + 4)
#define LS_D16(i) LS_D8(i), LS_D8(i + 8)
#define LS_D32(i) LS_D16(i), LS_D16(i + 16)
#define LS_D64(i) LS_D32(i), LS_D32(i + 32)
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
#define LS_N68 LS_N64 ", %64, %65, %66, %67"
#define LS_N72 LS_N68 ", %68, %69, %70, %71"
#define LS_N76 LS_N72 ", %72, %73, %74, %75"
#define LS_N80 LS_N76 ", %76, %77, %78, %79"
#define LS_N84 LS_N80 ", %80, %81, %82, %83"
#define LS_N88 LS_N84 ", %84, %85, %86, %87"
#define LS_N92 LS_N88 ", %88, %89, %90, %91"
#define LS_N96 LS_N92 ", %92, %93, %94, %95"

#define LS_WGMMA(columns, names, a_name, b_name, ...)                                      \
  template <>                                                                              \
  __device__ __forceinline__ void wgmma_bf16<columns>(float (&d)[columns / 2], uint64_t a, \
                                                      uint64_t b) {                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names  \
                 "}, " a_name ", " b_name ", 1, 1, 1, 0, 0;\n"                             \
                 : __VA_ARGS__                                                             \
                 : "l"(a), "l"(b));                                                        \
  }

LS_WGMMA(16, LS_N8, "%8", "%9", LS_D8(0))
LS_WGMMA(32, LS_N16, "%16", "%17", LS_D16(0))
LS_WGMMA(48, LS_N24, "%24", "%25", LS_D16(0), LS_D8(16))
LS_WGMMA(64, LS_N32, "%32", "%33", LS_D32(0))
LS_WGMMA(72, LS_N36, "%36", "%37", LS_D32(0), LS_D4(32))
LS_WGMMA(80, LS_N40, "%40", "%41", LS_D32(0), LS_D8(32))
LS_WGMMA(88, LS_N44, "%44", "%45", LS_D32(0), LS_D8(32), LS_D4(40))
LS_WGMMA(96, LS_N48, "%48", "%49", LS_D32(0), LS_D16(32))
LS_WGMMA(104, LS_N52, "%52", "%53", LS_D32(0), LS_D16(32), LS_D4(48))
LS_WGMMA(112, LS_N56, "%56", "%57", LS_D32(0), LS_D16(32), LS_D8(48))
LS_WGMMA(120, LS_N60, "%60", "%61", LS_D32(0), LS_D16(32), LS_D8(48), LS_D4(56))
LS_WGMMA(128, LS_N64, "%64", "%65", LS_D64(0))
LS_WGMMA(136, LS_N68, "%68", "%69", LS_D64(0), LS_D4(64))
LS_WGMMA(144, LS_N72, "%72", "%73", LS_D64(0), LS_D8(64))
LS_WGMMA(152, LS_N76, "%76", "%77", LS_D64(0), LS_D8(64), LS_D4(72))
LS_WGMMA(160, LS_N80, "%80", "%81", LS_D64(0), LS_D16(64))
LS_WGMMA(168, LS_N84, "%84", "%85", LS_D64(0), LS_D16(64), LS_D4(80))
LS_WGMMA(176, LS_N88, "%88", "%89", LS_D64(0), LS_D16(64), LS_D8(80))
LS_WGMMA(184, LS_N92, "%92", "%93", LS_D64(0), LS_D16(64), LS_D8(80), LS_D4(88))
LS_WGMMA(192, LS_N96, "%96", "%97", LS_D64(0), LS_D32(64))

#define LS_WGMMA_A(columns, names, a_names, b_name, ...)                                    \
  template <>                                                                               \
  __device__ __forceinline__ void wgmma_bf16<columns>(float (&d)[columns / 2],              \
                                                      const uint32_t (&a)[4], uint64_t b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names   \
                 "}, {" a_names "}, " b_name ", 1, 1, 1, 0;\n"                              \
                 : __VA_ARGS__                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                     \
  }

LS_WGMMA_A(16, LS_N8, "%8, %9, %10, %11", "%12", LS_D8(0))
LS_WGMMA_A(32, LS_N16, "%16, %17, %18, %19", "%20", LS_D16(0))
LS_WGMMA_A(48, LS_N24, "%24, %25, %26, %27", "%28", LS_D16(0), LS_D8(16))
LS_WGMMA_A(64, LS_N32, "%32, %33, %34, %35", "%36", LS_D32(0))
LS_WGMMA_A(80, LS_N40, "%40, %41, %42, %43", "%44", LS_D32(0), LS_D8(32))
LS_WGMMA_A(96, LS_N48, "%48, %49, %50, %51", "%52", LS_D32(0), LS_D16(32))
LS_WGMMA_A(112, LS_N56, "%56, %57, %58, %59", "%60", LS_D32(0), LS_D16(32), LS_D8(48))
LS_WGMMA_A(128, LS_N64, "%64, %65, %66, %67", "%68", LS_D64(0))
LS_WGMMA_A(144, LS_N72, "%72, %73, %74, %75", "%76", LS_D64(0), LS_D8(64))

#undef LS_WGMMA
#undef LS_WGMMA_A
#undef LS_D4
#undef LS_D8
#undef LS_D16
#undef LS_D32
#undef LS_D64
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
#undef LS_N68
#undef LS_N72
#undef LS_N76
#undef LS_N80
#undef LS_N84
#undef LS_N88
#undef LS_N92
#undef LS_N96

}  // namespace layered_sglang
