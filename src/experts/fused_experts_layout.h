// Sizes, choices and the workspace of a MoE layer's experts: plain C++, shared with the tests.
#pragma once

#include <cstddef>
#include <cstdint>

#include "experts/token_tiles.h"

namespace layered_sglang {

struct FusedExpertsSizes {
  int64_t num_tokens;
  int64_t top_k;
  int64_t num_experts;
  int64_t hidden;
  int64_t inter;  // of this rank's shard

  constexpr int64_t num_pairs() const { return num_tokens * top_k; }
};

// Limits of the kernels (besides those of the expert plan).
inline constexpr int64_t kExpertHiddenMultiple = 8;  // 16-byte rows for the copy engine
inline constexpr int64_t kExpertInterMultiple = 8;   // the same, of w2 and of the intermediate
inline constexpr int64_t kMaxExpertTopK = 32;

enum class FusedExpertsPath : int {
  kAutomatic = 0,
  kGemv = 1,              // a warp per neuron and pair; no plan
  kGroupedGemm = 2,       // plan, two grouped GEMMs, combine
  kGroupedGemmPairs = 3,  // the same with clusters of two blocks that share their weight tiles
};

// Token tiles of an expert of average size, when tiles come in multiples.
constexpr int64_t average_token_tiles(const FusedExpertsSizes& sizes, int64_t multiple) {
  const int64_t rows_of_tiles = sizes.num_experts * kMaxTileTokens * multiple;
  return (sizes.num_pairs() + rows_of_tiles - 1) / rows_of_tiles * multiple;
}

// The GEMV path reads an expert once per pair instead of once, so it takes few pairs: from E / 4 of
// them on, one read in eight is a repetition. (H200, 128 experts, top 8: 4 tokens take it 81 us,
// and the grouped GEMM 82; 8 tokens 162 against 134.)
// Blocks in pairs read a third less from the L2, and pay where they need no more tiles than single
// ones. (H100, 128 experts, top 8: 4096 tokens of inter 384, two tiles each way, take them 429 us
// and single blocks 437; 8192 of inter 768, four tiles instead of three, 1346 against 1273.)
constexpr FusedExpertsPath choose_fused_experts_path(const FusedExpertsSizes& sizes) {
  const bool few_pairs = sizes.num_tokens == 1 || sizes.num_pairs() * 4 <= sizes.num_experts;
  if (few_pairs) return FusedExpertsPath::kGemv;
  return average_token_tiles(sizes, 2) == average_token_tiles(sizes, 1)
             ? FusedExpertsPath::kGroupedGemmPairs
             : FusedExpertsPath::kGroupedGemm;
}

// Up to this many rows an expert on average, most experts have one token tile, so a weight tile is
// read by one task and need not stay in the L2.
inline constexpr int64_t kWeightsOnceMaxRowsPerExpert = 128;

constexpr bool reads_weights_once(const FusedExpertsSizes& sizes) {
  return sizes.num_pairs() <= kWeightsOnceMaxRowsPerExpert * sizes.num_experts;
}

inline constexpr int64_t kWorkspaceAlignment = 256;

// Gives a workspace's parts their places, one after the other.
class WorkspaceParts {
 public:
  // Returns the byte offset of a part.
  constexpr int64_t take(int64_t bytes) {
    const int64_t start = end_;
    end_ += (bytes + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    return start;
  }
  constexpr int64_t bytes() const { return end_; }  // of all

 private:
  int64_t end_ = 0;
};

// Byte offsets of the plan in every format's workspace.
struct PlanWorkspace {
  int64_t expert_offsets;  // int32 [E + 1]
  int64_t expert_counts;   // int32 [E]
  int64_t sorted_rows;     // int32 [pairs]
  int64_t inverse_rows;    // int32 [pairs]
  int64_t own;             // the plan's own workspace
};

constexpr PlanWorkspace take_plan(WorkspaceParts& parts, const FusedExpertsSizes& sizes,
                                  int64_t plan_bytes) {
  PlanWorkspace at = {};
  at.expert_offsets = parts.take((sizes.num_experts + 1) * 4);
  at.expert_counts = parts.take(sizes.num_experts * 4);
  at.sorted_rows = parts.take(sizes.num_pairs() * 4);
  at.inverse_rows = parts.take(sizes.num_pairs() * 4);
  at.own = parts.take(plan_bytes);
  return at;
}

// Byte offsets of the workspace's parts. Every path fits into the same workspace.
struct FusedExpertsWorkspace {
  PlanWorkspace plan;
  int64_t stored_parts;  // int32 [E], at least 2: how far the GEMMs are
  int64_t intermediate;  // bf16 [pairs, inter]
  int64_t rows;          // bf16 [pairs, hidden]
  int64_t bytes;         // of all
};

constexpr FusedExpertsWorkspace fused_experts_workspace(const FusedExpertsSizes& sizes,
                                                        int64_t plan_bytes) {
  WorkspaceParts parts;
  FusedExpertsWorkspace at = {};
  at.plan = take_plan(parts, sizes, plan_bytes);
  at.stored_parts = parts.take((sizes.num_experts > 1 ? sizes.num_experts : 2) * 4);
  at.intermediate = parts.take(sizes.num_pairs() * sizes.inter * 2);
  at.rows = parts.take(sizes.num_pairs() * sizes.hidden * 2);
  at.bytes = parts.bytes();
  return at;
}

}  // namespace layered_sglang
