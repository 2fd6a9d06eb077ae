#include "experts/fused_experts_cpu.h"

#include <cmath>
#include <vector>

#include "common/narrow_floats.h"

namespace layered_sglang {
namespace {

float dot(const uint16_t* a, const float* b, int64_t size) {
  float sum = 0.0f;
  for (int64_t i = 0; i < size; ++i) sum += from_bf16(a[i]) * b[i];
  return sum;
}

}  // namespace

void fused_experts_cpu(const FusedExpertsCpuArgs& args) {
  const auto& [num_tokens, top_k, num_experts, hidden, inter] = args.sizes;
  std::vector<float> x(hidden);
  std::vector<float> neurons(inter);
  std::vector<float> sum(hidden);
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t i = 0; i < hidden; ++i) x[i] = from_bf16(args.x[token * hidden + i]);
    sum.assign(hidden, 0.0f);
    for (int64_t slot = token * top_k; slot < (token + 1) * top_k; ++slot) {
      const int32_t expert = args.topk_ids[slot];
      if (expert < 0 || expert >= num_experts) continue;
      const uint16_t* w13 = args.w13 + expert * 2 * inter * hidden;
      const uint16_t* w2 = args.w2 + expert * hidden * inter;
      for (int64_t i = 0; i < inter; ++i) {
        const float gate = dot(w13 + i * hidden, x.data(), hidden);
        const float up = dot(w13 + (inter + i) * hidden, x.data(), hidden);
        const float activated = args.bilinear ? gate * up : gate / (1.0f + std::exp(-gate)) * up;
        neurons[i] = from_bf16(to_bf16(activated));
      }
      for (int64_t i = 0; i < hidden; ++i) {
        sum[i] += args.topk_weights[slot] * dot(w2 + i * inter, neurons.data(), inter);
      }
    }
    for (int64_t i = 0; i < hidden; ++i)
      args.y[token * hidden + i] = to_bf16(sum[i] * args.routed_scaling_factor);
  }
}

}  // namespace layered_sglang
