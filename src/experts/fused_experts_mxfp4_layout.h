// Sizes and choices of a MoE layer's experts with MXFP4 weights: plain C++. Their workspace is that
// of the bf16 experts (fused_experts_layout.h).
#pragma once

#include <cstdint>

#include "experts/fused_experts_layout.h"
#include "experts/mxfp4_layout.h"

namespace layered_sglang {

enum class FusedExpertsMxfp4Path : int {
  kAutomatic = 0,
  kGemv = 1,  // a warp for 16 weight rows of a pair; no plan
  kFew = 2,   // plan, two grouped GEMMs with tasks of 128 weight rows and up to 64 tokens, combine
  kMany = 3,  // the same with tasks of 256 and up to 144
  kStream = 4,  // the same with tasks of 64 and up to 16, whose rows stay in registers
};

// Up to this many rows an expert on average, most experts have one small token tile.
inline constexpr int64_t kMxfp4StreamMaxRowsPerExpert = 8;
inline constexpr int64_t kMxfp4FewMaxRowsPerExpert = 32;

// Bytes of shared memory of the GEMV path's down kernel: the experts' neurons, and partial sums.
constexpr int64_t mxfp4_gemv_shared_bytes(const FusedExpertsSizes& sizes) {
  return sizes.top_k * (mxfp4_blocks(sizes.inter) * kMxfp4BlockDepth * 2 + 2 * 16 * 4);
}

// Whether the GEMV path can compute these sizes: shared memory, threads of a block, its grid.
constexpr bool mxfp4_gemv_takes(const FusedExpertsSizes& sizes) {
  constexpr int64_t kMostBytes = 47 * 1024;
  return sizes.top_k <= 16 && mxfp4_gemv_shared_bytes(sizes) <= kMostBytes &&
         mxfp4_blocks(sizes.hidden) * kMxfp4BlockDepth * 2 <= kMostBytes &&
         sizes.num_pairs() <= 65535;
}

// Whether the stream path can: a token tile's K has to fit into a block's registers.
constexpr bool mxfp4_stream_takes(const FusedExpertsSizes& sizes) {
  return mxfp4_blocks(sizes.hidden) <= kMxfp4StreamBlocks &&
         mxfp4_blocks(sizes.inter) <= kMxfp4StreamBlocks;
}

// The GEMV path reads an expert once per pair instead of once, so it takes few pairs.
constexpr FusedExpertsMxfp4Path choose_mxfp4_path(const FusedExpertsSizes& sizes) {
  const bool few_pairs = sizes.num_tokens == 1 || sizes.num_pairs() * 4 <= sizes.num_experts;
  if (few_pairs && mxfp4_gemv_takes(sizes)) return FusedExpertsMxfp4Path::kGemv;
  if (sizes.num_pairs() <= kMxfp4StreamMaxRowsPerExpert * sizes.num_experts &&
      mxfp4_stream_takes(sizes)) {
    return FusedExpertsMxfp4Path::kStream;
  }
  return sizes.num_pairs() > kMxfp4FewMaxRowsPerExpert * sizes.num_experts
             ? FusedExpertsMxfp4Path::kMany
             : FusedExpertsMxfp4Path::kFew;
}

// Bytes of an expert's matrix [rows, depth] in the kernels' layout.
constexpr int64_t mxfp4_matrix_bytes(int64_t rows, int64_t depth) {
  return mxfp4_blocks(rows) * mxfp4_blocks(depth) * kMxfp4BlockBytes;
}

}  // namespace layered_sglang
