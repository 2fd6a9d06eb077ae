// Sizes, limits and the workspace of a MoE layer's experts in block-scaled fp8: plain C++.
//
// Weights are e4m3 with a float32 scale for each block of 128 x 128; activations are quantised to
// e4m3 with a scale for each 128 of a row.
#pragma once

#include <cstdint>

#include "experts/fused_experts_layout.h"

namespace layered_sglang {

inline constexpr int kFp8Block = 128;               // of K and of weight rows that share a scale
inline constexpr float kFp8Largest = 448.0f;        // of e4m3
inline constexpr float kFp8SmallestGroup = 1e-10f;  // a group of smaller values counts as this

enum class FusedExpertsFp8Path : int {
  kAutomatic = 0,
  kNarrow = 1,  // token tiles of 16 ... 120 rows
  kWide = 2,    // of 128 rows; tokens are wgmma's M
};

// From this many rows an expert on average, wide tiles are faster. (H100, 128 experts, top 8,
// hidden 2048, inter 768: 1024 tokens take them 271 us, and narrow ones 303; 64 tokens 211 against
// 210.)
inline constexpr int64_t kFp8WideMinRowsPerExpert = 64;

constexpr bool uses_wide_fp8_tiles(const FusedExpertsSizes& sizes, FusedExpertsFp8Path path) {
  if (path != FusedExpertsFp8Path::kAutomatic) return path == FusedExpertsFp8Path::kWide;
  return sizes.num_pairs() >= kFp8WideMinRowsPerExpert * sizes.num_experts;
}

// Byte offsets of the workspace's parts.
struct FusedExpertsFp8Workspace {
  PlanWorkspace plan;
  int64_t x;                   // e4m3 [tokens, hidden]
  int64_t x_scale;             // float32 [tokens, hidden / 128]
  int64_t intermediate;        // e4m3 [pairs, inter]
  int64_t intermediate_scale;  // float32 [inter / 128, pairs]
  int64_t rows;                // bf16 [pairs, hidden]
  int64_t bytes;               // of all
};

constexpr FusedExpertsFp8Workspace fused_experts_fp8_workspace(const FusedExpertsSizes& sizes,
                                                               int64_t plan_bytes) {
  WorkspaceParts parts;
  FusedExpertsFp8Workspace at = {};
  at.plan = take_plan(parts, sizes, plan_bytes);
  at.x = parts.take(sizes.num_tokens * sizes.hidden);
  at.x_scale = parts.take(sizes.num_tokens * (sizes.hidden / kFp8Block) * 4);
  at.intermediate = parts.take(sizes.num_pairs() * sizes.inter);
  at.intermediate_scale = parts.take(sizes.inter / kFp8Block * sizes.num_pairs() * 4);
  at.rows = parts.take(sizes.num_pairs() * sizes.hidden * 2);
  at.bytes = parts.bytes();
  return at;
}

}  // namespace layered_sglang
