// A warp reads 16 weight rows of a row block straight into registers, in the order in which the
// small matrix product takes them, whose other operand has one token in every column.
#include "experts/expert_gemv_mxfp4_sm90.h"

#include "common/bf16_vector.cuh"
#include "common/block_scan.cuh"
#include "common/sm90_ptx.cuh"
#include "experts/mxfp4_expand.cuh"
#include "experts/mxfp4_store.cuh"

namespace layered_sglang {
namespace {

constexpr int kSlices = 4;  // of a row block: 16 rows, a warp's
constexpr int kSliceRows = kMxfp4BlockRows / kSlices;
constexpr int kParts = 2;  // of K, each a warp's
constexpr int kAhead = 8;  // K blocks whose loads are under way together
constexpr int kBlockPairs = kMxfp4BlockDepth / 2;
constexpr int kGateUpThreads = kSlices * kParts * kWarpSize;

// One slice of a row block from K block `first` to `last`.
struct Slice {
  const uint8_t* values;
  const uint8_t* scales;
  int first;
  int last;

  // `block`: the row block's first K block.
  __device__ __forceinline__ Slice(const uint8_t* block, int slice, int part, int k_blocks) {
    const int lane = threadIdx.x % kWarpSize;
    values = block + (kWarpSize * slice + lane) * 16;
    scales = block + kMxfp4ValueBytes + (8 * slice + lane / 4) * 4;
    first = k_blocks * part / kParts;
    last = k_blocks * (part + 1) / kParts;
  }

  // Lets the L2 fetch all of it.
  __device__ __forceinline__ void prefetch() const {
    const int lane = threadIdx.x % kWarpSize;
    for (int i = first * 4 + lane / 8; i < last * 4; i += 4) {
      // A slice's 512 bytes of values in a K block are 4 lines; of each, one lane in 8 asks.
      const uint8_t* line = values - lane * 16 + i / 4 * kMxfp4BlockBytes + i % 4 * 128;
      if (lane % 8 == 0) asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
  }

  // Its rows times `row`, [K / 2] pairs of bf16 in shared memory: rows lane / 4 and 8 more.
  __device__ __forceinline__ float2 times(const uint32_t* row) const {
    const int pair = threadIdx.x % 4;
    float sums[4] = {};
    for (int k = first; k < last; k += kAhead) {
      uint4 words[kAhead];
      uint32_t scale[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const size_t offset = static_cast<size_t>(min(k + i, last - 1)) * kMxfp4BlockBytes;
        words[i] = load_streaming(reinterpret_cast<const uint4*>(values + offset));
        scale[i] = __ldg(reinterpret_cast<const uint32_t*>(scales + offset));
      }
      ptx::keep_loads_above(last > 0);
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (k + i >= last) break;
        const uint32_t word[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
        const uint32_t* tokens = row + (k + i) * kBlockPairs + pair;
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          uint32_t a[4];
          expand_mxfp4(word[step], mxfp4_factors(scale[i], step / 2), a);
          ptx::multiply_16x8x16(sums, a, tokens[8 * step], tokens[8 * step + 4]);
        }
      }
    }
    return {sums[0], sums[2]};
  }
};

// Copies a row of bf16 [depth] into shared memory, with zeros up to the last K block's end.
__device__ __forceinline__ void load_row(uint32_t* target, const __nv_bfloat16* row, int depth,
                                         int k_blocks, int thread, int threads) {
  for (int i = thread; i < k_blocks * kMxfp4BlockDepth / 8; i += threads) {
    const bool exists = i * 8 < depth;
    const auto* source = reinterpret_cast<const uint4*>(row) + (exists ? i : 0);
    reinterpret_cast<uint4*>(target)[i] = exists ? load_written(source) : make_uint4(0, 0, 0, 0);
  }
}

// Block (b, p): row block b of pair p's expert.
__global__ void __launch_bounds__(kGateUpThreads) gate_up_gemv_mxfp4(ExpertGemvMxfp4Args args) {
  extern __shared__ __align__(16) uint32_t row[];
  __shared__ float2 partial[kSlices][kWarpSize];
  const int hidden = static_cast<int>(args.sizes.hidden);
  const int inter = static_cast<int>(args.sizes.inter);
  const int k_blocks = static_cast<int>(mxfp4_blocks(hidden));
  const int lane = threadIdx.x % kWarpSize;
  const int slice = threadIdx.x / kWarpSize % kSlices;
  const int part = threadIdx.x / kWarpSize / kSlices;
  const int pair = blockIdx.y;
  ptx::wait_for_previous_kernels();
  ptx::launch_dependents();
  const int expert = args.topk_ids[pair];
  if (expert < 0 || expert >= args.sizes.num_experts) return;

  const int64_t block = static_cast<int64_t>(expert) * gridDim.x + blockIdx.x;
  const Slice weights(args.w13.packed + block * k_blocks * kMxfp4BlockBytes, slice, part, k_blocks);
  const auto* x = args.x + static_cast<size_t>(pair / args.sizes.top_k) * hidden;
  load_row(row, x, hidden, k_blocks, threadIdx.x, kGateUpThreads);
  __syncthreads();
  float2 sums = weights.times(row);
  if (part == 1) partial[slice][lane] = sums;
  __syncthreads();
  const int neuron = kMxfp4BlockRows / 2 * blockIdx.x + 8 * slice + lane / 4;
  if (part == 1 || lane % 4 != 0 || neuron >= inter) return;
  const float* bias = args.w13.bias + static_cast<size_t>(expert) * 2 * inter + 2 * neuron;
  const float gate = sums.x + partial[slice][lane].x + bias[0];
  const float up = sums.y + partial[slice][lane].y + bias[1];
  args.intermediate[static_cast<size_t>(pair) * inter + neuron] =
      __float2bfloat16(grouped_gemm_mxfp4::activate(gate, up, args.activation));
}

// Block (q, t): 16 outputs of token t. A warp has a part of K of one of its experts.
__global__ void down_gemv_mxfp4(ExpertGemvMxfp4Args args) {
  extern __shared__ __align__(16) uint32_t shared_rows[];
  const int hidden = static_cast<int>(args.sizes.hidden);
  const int inter = static_cast<int>(args.sizes.inter);
  const int top_k = static_cast<int>(args.sizes.top_k);
  const int k_blocks = static_cast<int>(mxfp4_blocks(inter));
  auto* partial = reinterpret_cast<float*>(shared_rows + top_k * k_blocks * kBlockPairs);
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int slot = warp / kParts;
  const int token = blockIdx.y;
  const int pair = token * top_k + slot;
  const int row_block = blockIdx.x / kSlices;
  const int first_output = kSliceRows * blockIdx.x;
  // NOTE: read before the wait. That is safe because the gate/up kernel lets this one start only
  // after its own wait for whoever wrote the ids.
  const int expert = args.topk_ids[pair];
  const bool exists = expert >= 0 && expert < args.sizes.num_experts;
  const int64_t block =
      static_cast<int64_t>(exists ? expert : 0) * mxfp4_blocks(hidden) + row_block;
  const Slice weights(args.w2.packed + block * k_blocks * kMxfp4BlockBytes, blockIdx.x % kSlices,
                      warp % kParts, k_blocks);
  if (exists) weights.prefetch();
  ptx::wait_for_previous_kernels();
  ptx::launch_dependents();

  uint32_t* row = shared_rows + slot * k_blocks * kBlockPairs;
  if (exists) {
    load_row(row, args.intermediate + static_cast<size_t>(pair) * inter, inter, k_blocks,
             threadIdx.x % (kParts * kWarpSize), kParts * kWarpSize);
  }
  __syncthreads();
  if (exists) {
    const float2 sums = weights.times(row);
    if (lane % 4 == 0) {
      partial[warp * kSliceRows + lane / 4] = sums.x;
      partial[warp * kSliceRows + 8 + lane / 4] = sums.y;
    }
  }
  __syncthreads();
  const int output = first_output + threadIdx.x;
  if (threadIdx.x >= kSliceRows || output >= hidden) return;
  float sum = 0.0f;
  for (int i = 0; i < top_k; ++i) {
    const int of = args.topk_ids[token * top_k + i];
    if (of < 0 || of >= args.sizes.num_experts) continue;
    const float* parts = partial + i * kParts * kSliceRows + threadIdx.x;
    const float result =
        parts[0] + parts[kSliceRows] + args.w2.bias[static_cast<size_t>(of) * hidden + output];
    sum = fmaf(args.topk_weights[token * top_k + i], result, sum);
  }
  args.y[static_cast<size_t>(token) * hidden + output] =
      __float2bfloat16(sum * args.routed_scaling_factor);
}

}  // namespace

cudaError_t expert_gemv_mxfp4_sm90(const ExpertGemvMxfp4Args& args, cudaStream_t stream) {
  const FusedExpertsSizes& sizes = args.sizes;
  if (!mxfp4_gemv_takes(sizes)) return cudaErrorInvalidValue;
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  config.gridDim = dim3(mxfp4_blocks(2 * sizes.inter), sizes.num_pairs());
  config.blockDim = dim3(kGateUpThreads);
  config.dynamicSmemBytes = mxfp4_blocks(sizes.hidden) * kMxfp4BlockDepth * 2;
  const cudaError_t error = cudaLaunchKernelEx(&config, gate_up_gemv_mxfp4, args);
  if (error != cudaSuccess) return error;
  config.gridDim = dim3(mxfp4_blocks(sizes.hidden) * kSlices, sizes.num_tokens);
  config.blockDim = dim3(sizes.top_k * kParts * kWarpSize);
  config.dynamicSmemBytes = mxfp4_gemv_shared_bytes(sizes);
  return cudaLaunchKernelEx(&config, down_gemv_mxfp4, args);
}

}  // namespace layered_sglang
