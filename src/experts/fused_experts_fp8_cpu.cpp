#include "experts/fused_experts_fp8_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "common/narrow_floats.h"

namespace layered_sglang {
namespace {

// A row in groups of 128: e4m3 values and the groups' scales.
struct QuantisedRow {
  std::vector<float> values;
  std::vector<float> scales;
};

void quantise(const std::vector<float>& row, QuantisedRow& out) {
  out.values.resize(row.size());
  out.scales.resize(row.size() / kFp8Block);
  for (size_t group = 0; group < out.scales.size(); ++group) {
    const size_t first = group * kFp8Block;
    float largest = kFp8SmallestGroup;
    for (size_t i = first; i < first + kFp8Block; ++i)
      largest = std::fmax(largest, std::fabs(row[i]));
    out.scales[group] = largest * (1.0f / kFp8Largest);
    const float inverse = kFp8Largest / largest;
    for (size_t i = first; i < first + kFp8Block; ++i)
      out.values[i] = round_to_e4m3(row[i] * inverse);
  }
}

std::array<float, 256> e4m3_values() {
  std::array<float, 256> values;
  for (int bits = 0; bits < 256; ++bits) values[bits] = from_e4m3(static_cast<uint8_t>(bits));
  return values;
}

// The products of each 128 of K are summed first and then scaled, as on the GPU.
float dot(const uint8_t* weights, const float* weight_scales, const QuantisedRow& row) {
  static const std::array<float, 256> value_of = e4m3_values();
  float sum = 0.0f;
  for (size_t group = 0; group < row.scales.size(); ++group) {
    float products = 0.0f;
    for (size_t i = group * kFp8Block; i < (group + 1) * kFp8Block; ++i) {
      products += value_of[weights[i]] * row.values[i];
    }
    sum += products * (row.scales[group] * weight_scales[group]);
  }
  return sum;
}

}  // namespace

void fused_experts_fp8_cpu(const FusedExpertsFp8CpuArgs& args) {
  const auto& [num_tokens, top_k, num_experts, hidden, inter] = args.sizes;
  const int64_t hidden_blocks = hidden / kFp8Block;
  const int64_t inter_blocks = inter / kFp8Block;
  std::vector<float> row(hidden);
  std::vector<float> neurons(inter);
  std::vector<float> sum(hidden);
  QuantisedRow x;
  QuantisedRow intermediate;
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t i = 0; i < hidden; ++i) row[i] = from_bf16(args.x[token * hidden + i]);
    quantise(row, x);
    sum.assign(hidden, 0.0f);
    for (int64_t slot = token * top_k; slot < (token + 1) * top_k; ++slot) {
      const int32_t expert = args.topk_ids[slot];
      if (expert < 0 || expert >= num_experts) continue;
      const uint8_t* w13 = args.w13 + expert * 2 * inter * hidden;
      const float* w13_scale = args.w13_scale + expert * 2 * inter_blocks * hidden_blocks;
      const uint8_t* w2 = args.w2 + expert * hidden * inter;
      const float* w2_scale = args.w2_scale + expert * hidden_blocks * inter_blocks;
      for (int64_t i = 0; i < inter; ++i) {
        const int64_t gate_block = i / kFp8Block;
        const int64_t up_block = inter_blocks + gate_block;
        const float gate = dot(w13 + i * hidden, w13_scale + gate_block * hidden_blocks, x);
        const float up = dot(w13 + (inter + i) * hidden, w13_scale + up_block * hidden_blocks, x);
        neurons[i] = args.bilinear ? gate * up : gate / (1.0f + std::exp(-gate)) * up;
      }
      quantise(neurons, intermediate);
      for (int64_t i = 0; i < hidden; ++i) {
        const float* scales = w2_scale + i / kFp8Block * inter_blocks;
        sum[i] += args.topk_weights[slot] * dot(w2 + i * inter, scales, intermediate);
      }
    }
    for (int64_t i = 0; i < hidden; ++i) {
      args.y[token * hidden + i] = to_bf16(sum[i] * args.routed_scaling_factor);
    }
  }
}

}  // namespace layered_sglang
