// Sizes and choices of a MoE layer's experts with MXFP4 weights: plain C++. Their workspace is that
// of the bf16 experts (fused_experts_layout.h).
#pragma once

#include <cstdint>

#include "experts/fused_experts_layout.h"
#include "experts/mxfp4_layout.h"

namespace layered_sglang {

enum class FusedExpertsMxfp4Path : int {
  kAutomatic = 0,
  kFew = 1,   // tasks of 128 weight rows and up to 64 tokens
  kMany = 2,  // of 256 and up to 128
};

// Up to this many rows an expert on average, most experts have one small token tile.
inline constexpr int64_t kMxfp4FewMaxRowsPerExpert = 32;

constexpr bool uses_many_mxfp4_rows(const FusedExpertsSizes& sizes, FusedExpertsMxfp4Path path) {
  if (path != FusedExpertsMxfp4Path::kAutomatic) return path == FusedExpertsMxfp4Path::kMany;
  return sizes.num_pairs() > kMxfp4FewMaxRowsPerExpert * sizes.num_experts;
}

// Bytes of an expert's matrix [rows, depth] in the kernels' layout.
constexpr int64_t mxfp4_matrix_bytes(int64_t rows, int64_t depth) {
  return mxfp4_blocks(rows) * mxfp4_blocks(depth) * kMxfp4BlockBytes;
}

}  // namespace layered_sglang
