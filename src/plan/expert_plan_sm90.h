// The expert plan on a Hopper GPU: a stable counting sort of the router's expert ids.
//
// Two paths give the same result, bit for bit:
//   single block  one launch, the rows are put together in shared memory; for few pairs;
//   multi block   two launches, a histogram per block and then the placement, overlapped by
//                 programmatic dependent launch; for many pairs.
// Neither allocates, synchronises the host, uses global atomics or depends on the routing for its
// launch shape, so a CUDA graph replays either with any routing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "plan/expert_plan_layout.h"

namespace layered_sglang {

enum class ExpertPlanPath { kAutomatic, kSingleBlock, kMultiBlock };

// Whether the sizes fit into one block's threads and shared memory; kAutomatic then uses one.
bool expert_plan_fits_single_block(int64_t num_pairs, int64_t num_experts, int64_t row_alignment);

// Bytes of device workspace (4-byte aligned, contents irrelevant); 0 for the single-block path.
size_t expert_plan_workspace_bytes(int64_t num_pairs, int64_t num_experts, int64_t row_alignment,
                                   ExpertPlanPath path = ExpertPlanPath::kAutomatic);

// Enqueues the plan on `stream` of the current device. The caller has checked the limits of
// expert_plan_layout.h. Returns cudaErrorInvalidValue when kSingleBlock is asked for and does not
// fit, and otherwise what the launch returned.
cudaError_t expert_plan_sm90(const ExpertPlanArgs& args, void* workspace, cudaStream_t stream,
                             ExpertPlanPath path = ExpertPlanPath::kAutomatic);

}  // namespace layered_sglang
