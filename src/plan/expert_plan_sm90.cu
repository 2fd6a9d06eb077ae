#include "plan/expert_plan_sm90.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "plan/expert_plan_multi_block.cuh"
#include "plan/expert_plan_single_block.cuh"

namespace layered_sglang {
namespace {

// A block may ask for more (227 KB), but then leaves little of the multiprocessor to others.
constexpr size_t kSingleBlockMaxSharedBytes = 96 * 1024;
constexpr size_t kDefaultMaxSharedBytes = 48 * 1024;

int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }
int64_t round_up(int64_t value, int64_t multiple) { return ceil_div(value, multiple) * multiple; }

struct SingleBlockShape {
  int items;      // pairs of a thread
  int threads;    // at least one per expert
  int num_warps;  // warps that have pairs
  size_t shared_bytes;
};

SingleBlockShape single_block_shape(int64_t num_pairs, int64_t num_experts, int64_t row_alignment) {
  SingleBlockShape shape;
  shape.items = num_pairs <= kSingleBlockMaxThreads ? 1 : kSingleBlockMaxItems;
  shape.num_warps = static_cast<int>(ceil_div(num_pairs, kWarpSize * shape.items));
  shape.threads = static_cast<int>(std::max(round_up(num_experts, kWarpSize),
                                            static_cast<int64_t>(shape.num_warps) * kWarpSize));
  const int64_t rows = padded_row_capacity(num_pairs, num_experts, row_alignment);
  const int64_t count_pairs = ceil_div(shape.num_warps * num_experts, 2);
  shape.shared_bytes = (rows + num_experts + kWarpSize + count_pairs) * sizeof(int32_t);
  return shape;
}

struct MultiBlockShape {
  int items;  // pairs of a thread in a tile
  int blocks;
  int pairs_per_block;
};

MultiBlockShape multi_block_shape(int64_t num_pairs) {
  const int64_t per_block = ceil_div(std::max<int64_t>(num_pairs, 1), kMultiBlockMaxBlocks);
  const int items = per_block <= kMultiBlockThreads * kMultiBlockFewItems ? kMultiBlockFewItems
                                                                          : kMultiBlockManyItems;
  const int64_t pairs_per_block = round_up(per_block, kMultiBlockThreads * items);
  const int64_t blocks = std::max<int64_t>(ceil_div(num_pairs, pairs_per_block), 1);
  return {items, static_cast<int>(blocks), static_cast<int>(pairs_per_block)};
}

template <int kItems>
cudaError_t launch_single_block(const ExpertPlanArgs& args, const SingleBlockShape& shape,
                                cudaStream_t stream) {
  const auto kernel = expert_plan_single_block<kItems>;
  if (shape.shared_bytes > kDefaultMaxSharedBytes) {
    // Per device, and cheap enough to say again on each call; allowed during stream capture.
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSingleBlockMaxSharedBytes);
    if (error != cudaSuccess) return error;
  }
  kernel<<<1, shape.threads, shape.shared_bytes, stream>>>(args, shape.num_warps);
  return cudaGetLastError();
}

cudaError_t launch_multi_block(const ExpertPlanArgs& args, int32_t* block_counts,
                               cudaStream_t stream) {
  const MultiBlockShape shape = multi_block_shape(args.num_pairs);
  expert_plan_histogram<<<shape.blocks, kMultiBlockThreads, 0, stream>>>(
      args, shape.pairs_per_block, block_counts);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;

  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(kMultiBlockThreads);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  const auto place = shape.items == kMultiBlockFewItems ? expert_plan_place<kMultiBlockFewItems>
                                                        : expert_plan_place<kMultiBlockManyItems>;
  return cudaLaunchKernelEx(&config, place, args, shape.pairs_per_block,
                            static_cast<const int32_t*>(block_counts));
}

bool uses_single_block(int64_t num_pairs, int64_t num_experts, int64_t row_alignment,
                       ExpertPlanPath path) {
  if (path != ExpertPlanPath::kAutomatic) return path == ExpertPlanPath::kSingleBlock;
  return expert_plan_fits_single_block(num_pairs, num_experts, row_alignment);
}

}  // namespace

bool expert_plan_fits_single_block(int64_t num_pairs, int64_t num_experts, int64_t row_alignment) {
  return num_pairs <= kSingleBlockMaxPairs &&
         single_block_shape(num_pairs, num_experts, row_alignment).shared_bytes <=
             kSingleBlockMaxSharedBytes;
}

size_t expert_plan_workspace_bytes(int64_t num_pairs, int64_t num_experts, int64_t row_alignment,
                                   ExpertPlanPath path) {
  if (uses_single_block(num_pairs, num_experts, row_alignment, path)) return 0;
  return multi_block_shape(num_pairs).blocks * num_experts * sizeof(int32_t);
}

cudaError_t expert_plan_sm90(const ExpertPlanArgs& args, void* workspace, cudaStream_t stream,
                             ExpertPlanPath path) {
  if (!uses_single_block(args.num_pairs, args.num_experts, args.row_alignment, path)) {
    return launch_multi_block(args, static_cast<int32_t*>(workspace), stream);
  }
  if (!expert_plan_fits_single_block(args.num_pairs, args.num_experts, args.row_alignment)) {
    return cudaErrorInvalidValue;
  }
  const SingleBlockShape shape =
      single_block_shape(args.num_pairs, args.num_experts, args.row_alignment);
  return shape.items == 1 ? launch_single_block<1>(args, shape, stream)
                          : launch_single_block<kSingleBlockMaxItems>(args, shape, stream);
}

}  // namespace layered_sglang
