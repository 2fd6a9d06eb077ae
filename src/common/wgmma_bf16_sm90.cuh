// wgmma: accumulator [64, kColumns] fp32 += A [64, 16] bf16 * B [kColumns, 16]^T bf16, both in
// shared memory with K contiguous (ptx::operand_descriptor).
//
// The accumulator's elements of a thread: columns come in blocks of 8; block j of lane l in warp w
// holds at [4 * j + 2 * h + i] row 16 * w + 8 * h + l / 4, column 8 * j + 2 * (l % 4) + i.
#pragma once

#include <cstdint>

namespace layered_sglang {

template <int kColumns>
__device__ __forceinline__ void wgmma_bf16(float (&d)[kColumns / 2], uint64_t a, uint64_t b);

// The eight registers of 16 columns, as operands and as their names in the instruction.
#define LS_D(i)                                                                               \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define LS_N0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define LS_N1 LS_N0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define LS_N2 LS_N1 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define LS_N3 LS_N2 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define LS_N4 LS_N3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define LS_N5 LS_N4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define LS_N6 LS_N5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define LS_N7 LS_N6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define LS_N8 LS_N7 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define LS_N9 LS_N8 ", %72, %73, %74, %75, %76, %77, %78, %79"

#define LS_WGMMA(columns, names, a_name, b_name, ...)                                      \
  template <>                                                                              \
  __device__ __forceinline__ void wgmma_bf16<columns>(float (&d)[columns / 2], uint64_t a, \
                                                      uint64_t b) {                        \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" names  \
                 "}, " a_name ", " b_name ", 1, 1, 1, 0, 0;\n"                             \
                 : __VA_ARGS__                                                             \
                 : "l"(a), "l"(b));                                                        \
  }

LS_WGMMA(16, LS_N0, "%8", "%9", LS_D(0))
LS_WGMMA(32, LS_N1, "%16", "%17", LS_D(0), LS_D(8))
LS_WGMMA(48, LS_N2, "%24", "%25", LS_D(0), LS_D(8), LS_D(16))
LS_WGMMA(64, LS_N3, "%32", "%33", LS_D(0), LS_D(8), LS_D(16), LS_D(24))
LS_WGMMA(80, LS_N4, "%40", "%41", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32))
LS_WGMMA(96, LS_N5, "%48", "%49", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32), LS_D(40))
LS_WGMMA(112, LS_N6, "%56", "%57", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32), LS_D(40),
         LS_D(48))
LS_WGMMA(128, LS_N7, "%64", "%65", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32), LS_D(40),
         LS_D(48), LS_D(56))
LS_WGMMA(144, LS_N8, "%72", "%73", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32), LS_D(40),
         LS_D(48), LS_D(56), LS_D(64))
LS_WGMMA(160, LS_N9, "%80", "%81", LS_D(0), LS_D(8), LS_D(16), LS_D(24), LS_D(32), LS_D(40),
         LS_D(48), LS_D(56), LS_D(64), LS_D(72))

#undef LS_WGMMA
#undef LS_D
#undef LS_N0
#undef LS_N1
#undef LS_N2
#undef LS_N3
#undef LS_N4
#undef LS_N5
#undef LS_N6
#undef LS_N7
#undef LS_N8
#undef LS_N9

}  // namespace layered_sglang
