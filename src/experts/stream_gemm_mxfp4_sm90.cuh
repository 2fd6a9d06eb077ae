// The grouped GEMM for few rows an expert: weights stream through, tokens stay in registers.
//
// The row blocks of all token tiles (up to 16 rows of an expert) follow one another. A block first
// takes its share of their first part, and then pieces of the rest as it comes to them, because
// memory serves some multiprocessors faster than others.
//
// Warps of a block:
//   0 ... 15 divide K. A warp copies its part of the next row block into a ring of its own while it
//            expands that of this one and multiplies it with its part of the tokens, which it holds
//            in registers for as long as the token tile lasts. The 16 sums meet in shared memory;
//            four warps, by turns, add them in a fixed order and store the rows.
//   16       tells the others which row blocks come next.
#pragma once

#include "experts/mxfp4_expand.cuh"
#include "experts/mxfp4_store.cuh"
#include "experts/mxfp4_stream_tasks.cuh"

namespace layered_sglang::stream_gemm_mxfp4 {

// A warp's part of K.
struct Part {
  int first;  // K block
  int count;  // up to kMostParts
};

__device__ __forceinline__ const uint8_t* weights_of(const KernelArgs& args, const RowBlock& at,
                                                     Part part) {
  const size_t block = static_cast<size_t>(at.expert) * args.row_blocks + at.weight_tile;
  return args.weights.packed + (block * args.k_blocks + part.first) * kMxfp4BlockBytes;
}

// Copies K block `k` of a warp's part of a row block into its stage, whose contents it has read.
__device__ __forceinline__ void copy_weights(const KernelArgs& args, const Layout& shared,
                                             const uint8_t* source, int warp, int k) {
  if (threadIdx.x % kWarpSize == 0) {
    const uint32_t full = shared.full(warp, k);
    ptx::barrier_arrive_expect_bytes(full, kMxfp4BlockBytes);
    ptx::bulk_load(shared.weights(warp, k), source + k * kMxfp4BlockBytes, kMxfp4BlockBytes, full,
                   args.weight_policy);
  }
}

// A warp's part of a token tile, as the second operand of its products.
template <bool kGateUp, int kTiles>
__device__ __forceinline__ void load_tokens(const KernelArgs& args, const RowBlock& at, Part part,
                                            uint32_t (&b)[kMostParts][4][kTiles][2]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    // Rows beyond the last give columns that are not stored.
    int row = at.first_row + min(8 * tile + lane / 4, at.rows - 1);
    if (kGateUp) row = __ldcg(args.gemm.sorted_rows + row) / args.gemm.top_k;
    const int first = part.first * kMxfp4BlockDepth;
    int count = part.count;
    asm volatile("" : "+r"(count));  // so that `end` is not kept from token tile to token tile
    const int end = min(args.depth, first + count * kMxfp4BlockDepth);
    const auto* tokens = reinterpret_cast<const uint32_t*>(
        args.tokens + static_cast<size_t>(row) * args.depth + first + lane % 4 * 2);
#pragma unroll
    for (int k = 0; k < kMostParts; ++k) {
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const int within = k * kMxfp4BlockDepth + step * 16;
        const bool exists = first + within < end;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          b[k][step][tile][half] = exists ? __ldcg(tokens + within / 2 + half * 4) : 0;
        }
      }
    }
  }
}

// Adds up the warps' sums of one slice of row block `number`, and stores the rows.
template <bool kGateUp>
__device__ __forceinline__ void reduce(const KernelArgs& args, const Layout& shared, int number) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int slice = warp % kReducers;
  const RowBlock at = row_block(shared, number);
  const float2 bias =
      grouped_gemm_mxfp4::load_bias<kGateUp>(args, at.expert, at.weight_tile, slice, lane);
  float total[4 * kMostTiles];
#pragma unroll
  for (int i = 0; i < 4 * kMostTiles; ++i) total[i] = i % 4 < 2 ? bias.x : bias.y;
  ptx::barrier_wait(shared.sums_full(), number % 2);
#pragma unroll
  for (int tile = 0; tile < kMostTiles; ++tile) {
    if (8 * tile >= at.rows) break;
#pragma unroll 4
    for (int from = 0; from < kWarps; ++from) {
      const uint4 sums = ptx::load_shared_16(shared.sums(from, slice, tile) + lane * 16);
      total[4 * tile + 0] += __uint_as_float(sums.x);
      total[4 * tile + 1] += __uint_as_float(sums.y);
      total[4 * tile + 2] += __uint_as_float(sums.z);
      total[4 * tile + 3] += __uint_as_float(sums.w);
    }
  }
  // Each lane by itself, as each has read; racecheck does not see that one may do so for its warp.
  ptx::barrier_arrive(shared.sums_empty());
  if (slice == 0 && lane == 0) ptx::barrier_arrive(shared.summed(number));
  Task task = {};
  task.first_row = at.first_row;
  task.rows = at.rows;
  grouped_gemm_mxfp4::store_block<kGateUp, 8 * kMostTiles>(args, task, total, at.weight_tile, slice,
                                                           shared.transpose(warp));
}

// A warp's sums over one K block, of all slices.
template <int kTiles>
__device__ __forceinline__ void multiply(uint32_t block, const uint32_t (&b)[4][kTiles][2],
                                         float (&sums)[kSlices][kTiles][4]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    const uint4 values = ptx::load_shared_16(block + (slice * kWarpSize + lane) * 16);
    const uint32_t scales =
        ptx::load_shared_word(block + kMxfp4ValueBytes + slice * 32 + lane / 4 * 4);
    const uint32_t words[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      expand_mxfp4(words[step], mxfp4_factors(scales, step / 2), a);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        ptx::multiply_16x8x16(sums[slice][tile], a, b[step][tile][0], b[step][tile][1]);
      }
    }
  }
}

// The row blocks from `number` on that belong to one token tile of up to 8 * kTiles rows. Returns
// the number of the one behind them.
template <bool kGateUp, int kTiles>
__device__ __forceinline__ int run_token_tile(const KernelArgs& args, const Layout& shared,
                                              Part part, int number) {
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  uint32_t b[kMostParts][4][kTiles][2];
  load_tokens<kGateUp, kTiles>(args, row_block(shared, number), part, b);
  bool is_last;
#pragma unroll 1
  do {
    const RowBlock after = row_block(shared, number + 1);
    const uint8_t* next = after.rows > 0 ? weights_of(args, after, part) : nullptr;
    is_last = after.rows == 0 || after.first_row != row_block(shared, number).first_row;
    float sums[kSlices][kTiles][4] = {};
#pragma unroll
    for (int k = 0; k < kMostParts; ++k) {
      if (k < part.count) {
        ptx::barrier_wait(shared.full(warp, k), number % 2);
        multiply<kTiles>(shared.weights(warp, k), b[k], sums);
        __syncwarp();
        if (next != nullptr) copy_weights(args, shared, next, warp, k);
      }
      // The other warps' sums of the row block before are there by now, or soon.
      if (k == 0 && number > 0 && warp / kReducers == (number - 1) % (kWarps / kReducers)) {
        reduce<kGateUp>(args, shared, number - 1);
      }
    }
    if (number > 0) ptx::barrier_wait(shared.sums_empty(), (number - 1) % 2);
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        ptx::store_shared_16(shared.sums(warp, slice, tile) + lane * 16, sums[slice][tile]);
      }
    }
    ptx::barrier_arrive(shared.sums_full());
    ++number;
  } while (!is_last);
  return number;
}

template <bool kGateUp>
__device__ __forceinline__ void run_warp(const KernelArgs& args, const Layout& shared, int warp) {
  Part part;
  part.first = args.k_blocks * warp / kWarps;
  part.count = args.k_blocks * (warp + 1) / kWarps - part.first;
  const RowBlock first = row_block(shared, 0);
  if (first.rows > 0) {
    const uint8_t* source = weights_of(args, first, part);
    for (int k = 0; k < part.count; ++k) copy_weights(args, shared, source, warp, k);
  }
  // The down GEMM's rows are the gate/up GEMM's results; its weights are under way by now.
  if (!kGateUp) ptx::wait_for_previous_kernels();
  int number = 0;
#pragma unroll 1
  for (int rows; (rows = row_block(shared, number).rows) > 0;) {
    number = rows <= 8 ? run_token_tile<kGateUp, 1>(args, shared, part, number)
                       : run_token_tile<kGateUp, 2>(args, shared, part, number);
  }
  if (number > 0 && warp / kReducers == (number - 1) % (kWarps / kReducers)) {
    reduce<kGateUp>(args, shared, number - 1);
  }
}

template <bool kGateUp>
__global__ void __launch_bounds__(kThreads, 1)
    stream_gemm_mxfp4(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(128) uint8_t shared_memory[];
  const Layout shared = {ptx::shared_address(shared_memory)};
  auto* table = reinterpret_cast<Expert*>(shared_memory + kTable);

  if (threadIdx.x < kWarps * kMostParts + 2 * kKnown) {
    ptx::barrier_init(shared.full(0, threadIdx.x), 1);  // and those of row blocks announced
    if (threadIdx.x == 0) {
      ptx::barrier_init(shared.sums_full(), kWarps * kWarpSize);
      ptx::barrier_init(shared.sums_empty(), kReducers * kWarpSize);
    }
    ptx::barrier_init_fence();
  }
  // NOTE: the down GEMM reads the plan before it waits. That is safe because the gate/up GEMM lets
  // it start only after its own wait for the plan.
  if (kGateUp) {
    ptx::wait_for_previous_kernels();
    // The down GEMM counts before it waits, too.
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      args.next_piece[1] = 0;
      __threadfence();
    }
  }
  fill_expert_table<kThreads>(args.gemm.expert_offsets, args.gemm.num_experts, table,
                              [](int rows) { return mxfp4_stream_tile_count(rows); });
  ptx::launch_dependents();

  const int warp = threadIdx.x / kWarpSize;
  if (warp >= kWarps) {
    ptx::lower_registers<kSchedulerRegisters>();
    if (warp == kWarps) Scheduler{args, table, shared}.run();
  } else {
    ptx::raise_registers<kRegisters>();
    run_warp<kGateUp>(args, shared, warp);
  }
}

}  // namespace layered_sglang::stream_gemm_mxfp4
