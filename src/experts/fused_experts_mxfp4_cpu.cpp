#include "experts/fused_experts_mxfp4_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "common/narrow_floats.h"

namespace layered_sglang {
namespace {

float from_e2m1(int bits) {
  constexpr float kMagnitudes[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  return bits & 8 ? -kMagnitudes[bits & 7] : kMagnitudes[bits & 7];
}

// One expert's matrix in the kernels' layout.
struct PackedMatrix {
  const uint8_t* packed;
  int64_t depth;
  bool gate_up;

  float dot(int64_t row, const float* values) const {
    const int64_t k_blocks = mxfp4_blocks(depth);
    const uint8_t* block = packed + row / kMxfp4BlockRows * k_blocks * kMxfp4BlockBytes;
    const Mxfp4Row place = mxfp4_row(static_cast<int>(row % kMxfp4BlockRows), gate_up);
    float sum = 0.0f;
    for (int64_t k = 0; k < depth; ++k) {
      const uint8_t* of = block + k / kMxfp4BlockDepth * kMxfp4BlockBytes;
      const int within = static_cast<int>(k % kMxfp4BlockDepth);
      const auto [byte, pair] = mxfp4_value_place(place, within);
      const auto half = static_cast<uint16_t>(of[byte] | of[byte + 1] << 8);
      const uint8_t* scales = of + mxfp4_scale_word(place);
      const uint32_t word =
          scales[0] | scales[1] << 8 | scales[2] << 16 | static_cast<uint32_t>(scales[3]) << 24;
      const int exponent =
          mxfp4_scale(word, place.half, within / kMxfp4Group) - kMxfp4ScaleOffset - 127;
      sum += std::ldexp(from_e2m1(mxfp4_bits(half, pair)), exponent) * values[k];
    }
    return sum;
  }
};

}  // namespace

void fused_experts_mxfp4_cpu(const FusedExpertsMxfp4CpuArgs& args) {
  const auto& [num_tokens, top_k, num_experts, hidden, inter] = args.sizes;
  const int64_t w13_bytes = mxfp4_matrix_bytes(2 * inter, hidden);
  const int64_t w2_bytes = mxfp4_matrix_bytes(hidden, inter);
  std::vector<float> x(hidden);
  std::vector<float> neurons(inter);
  std::vector<float> sum(hidden);
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t i = 0; i < hidden; ++i) x[i] = from_bf16(args.x[token * hidden + i]);
    sum.assign(hidden, 0.0f);
    for (int64_t slot = token * top_k; slot < (token + 1) * top_k; ++slot) {
      const int32_t expert = args.topk_ids[slot];
      if (expert < 0 || expert >= num_experts) continue;
      const PackedMatrix w13 = {args.w13 + expert * w13_bytes, hidden, true};
      const PackedMatrix w2 = {args.w2 + expert * w2_bytes, inter, false};
      const float* w13_bias = args.w13_bias + expert * 2 * inter;
      const float* w2_bias = args.w2_bias + expert * hidden;
      for (int64_t i = 0; i < inter; ++i) {
        float gate = w13.dot(2 * i, x.data()) + w13_bias[2 * i];
        float up = w13.dot(2 * i + 1, x.data()) + w13_bias[2 * i + 1];
        if (!args.bilinear) {
          gate = std::min(gate, args.limit);
          up = std::clamp(up, -args.limit, args.limit) + 1.0f;
          gate /= 1.0f + std::exp(-args.alpha * gate);
        }
        neurons[i] = from_bf16(to_bf16(gate * up));
      }
      for (int64_t i = 0; i < hidden; ++i) {
        sum[i] += args.topk_weights[slot] * (w2.dot(i, neurons.data()) + w2_bias[i]);
      }
    }
    for (int64_t i = 0; i < hidden; ++i) {
      args.y[token * hidden + i] = to_bf16(sum[i] * args.routed_scaling_factor);
    }
  }
}

}  // namespace layered_sglang
