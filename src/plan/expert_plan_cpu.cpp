#include "plan/expert_plan_cpu.h"

#include <algorithm>
#include <vector>

namespace layered_sglang {

void expert_plan_cpu(const ExpertPlanArgs& args) {
  const auto is_expert = [&](int32_t id) { return id >= 0 && id < args.num_experts; };

  std::fill_n(args.expert_counts, args.num_experts, 0);
  for (int32_t pair = 0; pair < args.num_pairs; ++pair) {
    if (is_expert(args.topk_ids[pair])) ++args.expert_counts[args.topk_ids[pair]];
  }

  if (args.cleared_counts != nullptr) std::fill_n(args.cleared_counts, args.num_experts, 0);
  args.expert_offsets[0] = 0;
  for (int32_t expert = 0; expert < args.num_experts; ++expert) {
    const int32_t tiles =
        (args.expert_counts[expert] + args.row_alignment - 1) / args.row_alignment;
    args.expert_offsets[expert + 1] = args.expert_offsets[expert] + tiles * args.row_alignment;
  }

  std::fill_n(args.sorted_rows, args.row_capacity, -1);
  std::vector<int32_t> next_row(args.expert_offsets, args.expert_offsets + args.num_experts);
  for (int32_t pair = 0; pair < args.num_pairs; ++pair) {
    const int32_t expert = args.topk_ids[pair];
    if (!is_expert(expert)) {
      args.inverse_rows[pair] = -1;
      continue;
    }
    const int32_t row = next_row[expert]++;
    args.inverse_rows[pair] = row;
    args.sorted_rows[row] = pair;
  }
}

}  // namespace layered_sglang
