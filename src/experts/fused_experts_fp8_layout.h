// Sizes and limits of a MoE layer's experts in block-scaled fp8: plain C++.
//
// Weights are e4m3 with a float32 scale for each block of 128 x 128; activations are quantised to
// e4m3 with a scale for each 128 of a row.
#pragma once

namespace layered_sglang {

inline constexpr int kFp8Block = 128;               // of K and of weight rows that share a scale
inline constexpr float kFp8Largest = 448.0f;        // of e4m3
inline constexpr float kFp8SmallestGroup = 1e-10f;  // a group of smaller values counts as this

}  // namespace layered_sglang
