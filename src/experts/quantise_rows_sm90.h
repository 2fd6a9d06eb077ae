// Rows of bf16 to e4m3, each 128 of a row with a scale of its own.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace layered_sglang {

struct QuantiseRowsArgs {
  const __nv_bfloat16* x;  // [rows, columns]
  uint8_t* values;         // e4m3 [rows, columns]
  float* scales;           // [rows, columns / 128]
  int64_t rows;
  int64_t columns;  // a multiple of 128
};

// x must have been written before the previous kernel of the stream was launched: with
// `overlap_launch` this one may read it while that one still runs. It ends after it.
cudaError_t quantise_rows_sm90(const QuantiseRowsArgs& args, bool overlap_launch,
                               cudaStream_t stream);

}  // namespace layered_sglang
