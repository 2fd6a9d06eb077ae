// Sizes and limits of the expert plan, shared by the kernels, the operator and the Python helpers.
#pragma once

#include <cstdint>

namespace layered_sglang {

inline constexpr int64_t kMaxPlanExperts = 512;
inline constexpr int64_t kMaxPlanRowAlignment = 256;
inline constexpr int64_t kMaxPlanPairs = int64_t{1} << 28;

// The most rows that num_pairs (token, expert) pairs can take once every expert's rows are padded
// to a multiple of row_alignment. Only an expert that has rows is padded, so this is tight: at
// most min(num_pairs, num_experts) experts lose at most row_alignment - 1 rows each.
constexpr int64_t padded_row_capacity(int64_t num_pairs, int64_t num_experts,
                                      int64_t row_alignment) {
  const int64_t used_experts = num_pairs < num_experts ? num_pairs : num_experts;
  const int64_t rows = num_pairs + used_experts * (row_alignment - 1);
  return rows / row_alignment * row_alignment;
}

// One plan: the input, its sizes, and the four outputs. All pointers are host or all are device.
// Every element of every output is written, whatever the routing.
struct ExpertPlanArgs {
  const int32_t* topk_ids;  // [num_pairs], flat index token * top_k + slot; outside [0, E): no row
  int32_t num_pairs;        // tokens * top_k, at most kMaxPlanPairs
  int32_t num_experts;      // E, 1 ... kMaxPlanExperts
  int32_t row_alignment;    // 1 ... kMaxPlanRowAlignment
  int32_t row_capacity;     // padded_row_capacity(num_pairs, num_experts, row_alignment)
  int32_t* expert_offsets;  // [E + 1], first row of each expert, then the padded row total
  int32_t* expert_counts;   // [E], rows of each expert without padding
  int32_t* sorted_rows;     // [row_capacity], flat index in this row, -1 for padding and beyond
  int32_t* inverse_rows;    // [num_pairs], row of this flat index, -1 for an id outside [0, E)
  int32_t* cleared_counts;  // [E], set to 0 for a kernel that follows; or null
};

}  // namespace layered_sglang
