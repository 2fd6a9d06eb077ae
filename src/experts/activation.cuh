// A neuron's output from its gate and up sums.
#pragma once

#include "experts/grouped_gemm_bf16_sm90.h"

namespace layered_sglang {

__device__ __forceinline__ float activate(float gate, float up, Activation activation) {
  if (activation == Activation::kBilinear) return gate * up;
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

}  // namespace layered_sglang
