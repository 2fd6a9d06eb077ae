// The expert plan on the host: the operator's CPU implementation and the benchmark's check.
#pragma once

#include "plan/expert_plan_layout.h"

namespace layered_sglang {

// A stable counting sort: within an expert, rows are in ascending flat index. Host pointers.
void expert_plan_cpu(const ExpertPlanArgs& args);

}  // namespace layered_sglang
