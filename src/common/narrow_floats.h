// bf16 and e4m3 (fp8: 4 bits of exponent, 3 of mantissa, no infinity) on the host.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace layered_sglang {

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  uint32_t wide;
  std::memcpy(&wide, &value, sizeof(wide));
  if (std::isnan(value)) return static_cast<uint16_t>((wide >> 16) | 0x40);
  return static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16);
}

inline float from_e4m3(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::nanf("");
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(8.0f + mantissa, exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

// The nearest value that e4m3 has, ties to even; beyond 448 in magnitude, 448; NaN becomes 448.
inline float round_to_e4m3(float value) {
  const float magnitude = std::isnan(value) ? 448.0f : std::min(std::fabs(value), 448.0f);
  if (magnitude == 0.0f) return 0.0f;
  const int exponent = std::max(std::ilogb(magnitude), -6);  // below 2^-6 steps stay as there
  const float step = std::ldexp(1.0f, exponent - 3);
  const float rounded = std::nearbyint(magnitude / step) * step;
  return value < 0.0f ? -rounded : rounded;
}

}  // namespace layered_sglang
