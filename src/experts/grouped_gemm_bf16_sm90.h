// The two grouped GEMMs of a MoE layer on a Hopper GPU, one persistent kernel each.
//
// Rows are those of an expert plan with row_alignment 1: one (token, expert) pair each, expert
// after expert. Both take any routing with the same launch shape and wait for nothing on the host.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace layered_sglang {

// What becomes of a neuron's gate and up sums.
enum class Activation : int {
  kSwiglu = 0,    // silu(gate) * up
  kBilinear = 1,  // gate * up; exact on small integers, so tests use it
};

struct GroupedGemmArgs {
  // The plan's outputs.
  const int32_t* expert_offsets;  // [E + 1]
  const int32_t* sorted_rows;     // [rows]: flat pair, token * top_k + slot
  // [E], 0 before the gate/up GEMM, which counts an expert's stored parts there: the down GEMM
  // starts on experts that are complete while others are not.
  int32_t* stored_parts;
  int32_t num_experts;
  int32_t num_rows;  // most rows that the plan can have: tokens * top_k
  int32_t top_k;
  int32_t hidden;
  int32_t inter;
  Activation activation;
};

// For measurements; results do not depend on it.
struct GroupedGemmTuning {
  // Stages that the second consumer warpgroup starts behind the first, so that one computes while
  // the other is in its epilogue. The ring of 4 stages has that many fewer to load ahead. -1:
  // chosen.
  int consumer_lag = -1;
  // Multiprocessors that the persistent grids fill; 0: all of the device. For a stream that may use
  // only some of them.
  int multiprocessors = 0;
};

struct GroupedGemmOptions {
  GroupedGemmTuning tuning;
  int cluster = 1;             // blocks that share each weight tile: 1 or 2
  bool weights_once = false;   // weights are read by one task only: they need not stay in the L2
  bool overlap_launch = true;  // may start while the previous kernel in the stream still runs
};

// intermediate [rows, inter] = activation(x[token] w13[expert]^T), gathering x by sorted_rows.
//   x [tokens, hidden]; w13 [E, 2 * inter, hidden]: of each expert the gate rows, then the up rows
cudaError_t gate_up_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* x,
                                   const __nv_bfloat16* w13, __nv_bfloat16* intermediate,
                                   const GroupedGemmOptions& options, cudaStream_t stream);

// out [rows, hidden] = intermediate w2[expert]^T.   w2 [E, hidden, inter]
cudaError_t down_gemm_bf16_sm90(const GroupedGemmArgs& args, const __nv_bfloat16* intermediate,
                                const __nv_bfloat16* w2, __nv_bfloat16* out,
                                const GroupedGemmOptions& options, cudaStream_t stream);

}  // namespace layered_sglang
