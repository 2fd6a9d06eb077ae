// How MXFP4 weights lie in memory for the kernels: plain C++, shared with the tests.
//
// MXFP4: e2m1 values (fp4: 2 bits of exponent, 1 of mantissa), 32 adjacent ones of a row share a
// scale 2^k. The kernels' layout has blocks of 64 rows x 64 of K, padded with zeros, in the order
// in which wgmma's A registers take them: 2048 bytes of values, then 128 of scales. A bulk copy
// brings a block, and a thread reads its share of the values in one 16-byte access.
//
//   packed [experts, row blocks, K blocks, 2176]
//
// Rows of a gate/up block: 32 neurons; of each 8, the gate rows and then the up rows, so that a
// thread holds both sums of its neurons. Thread l of warp w (of the four that share a block) holds
// rows 16 w + 8 h + l / 4, h = 0 and 1, in words s = 0 ... 3, one for each 16 of K.
#pragma once

#include <cstdint>

#include "experts/token_tiles.h"

namespace layered_sglang {

inline constexpr int kMxfp4Group = 32;      // of K that share a scale
inline constexpr int kMxfp4BlockRows = 64;  // wgmma's M
inline constexpr int kMxfp4BlockDepth = 64;
inline constexpr int kMxfp4ValueBytes = kMxfp4BlockRows * kMxfp4BlockDepth / 2;
inline constexpr int kMxfp4ScaleBytes = kMxfp4BlockRows * kMxfp4BlockDepth / kMxfp4Group;
inline constexpr int kMxfp4BlockBytes = kMxfp4ValueBytes + kMxfp4ScaleBytes;

// A scale is stored as the exponent field of the bf16 that an expanded value is multiplied with
// (experts/mxfp4_expand.cuh): its e8m0 byte + 126. So e8m0 bytes may be 0 ... 128, scales up to 2.
inline constexpr int kMxfp4ScaleOffset = 126;
inline constexpr int kMxfp4LargestScale = 128;

LAYERED_SGLANG_HOST_DEVICE constexpr int64_t mxfp4_blocks(int64_t size) {
  return (size + kMxfp4BlockRows - 1) / kMxfp4BlockRows;
}

// Of `row` of a block; the first in the checkpoint's order (gpt-oss: gate and up rows alternate).
struct Mxfp4Row {
  int warp;
  int half;  // h
  int lane;  // l / 4
};
constexpr Mxfp4Row mxfp4_row(int row, bool gate_up) {
  if (gate_up) return {row / 16, row % 2, row / 2 % 8};
  return {row / 16, row / 8 % 2, row % 8};
}

// Of a value: 16 bits of a block from `byte` on, and where they hold its magnitude and its sign.
struct Mxfp4Place {
  int byte;
  int pair;  // of the word: 0 ... 3, each with bits of its own
};
constexpr Mxfp4Place mxfp4_value_place(const Mxfp4Row& row, int k) {
  const int thread = 32 * row.warp + 4 * row.lane + k % 8 / 2;
  return {16 * thread + 4 * (k / 16) + 2 * (k % 2), 2 * (k / 8 % 2) + row.half};
}
constexpr int mxfp4_scale_byte(const Mxfp4Row& row, int k) {
  return kMxfp4ValueBytes + 4 * (8 * row.warp + row.lane) + 2 * (k / kMxfp4Group) + row.half;
}

// The e2m1 bits of a pair's value in its 16 bits. The first three pairs are the same pattern,
// sign ...... magnitude, shifted by 3 each; the fourth has the bits that they leave.
constexpr int mxfp4_bits(uint16_t half, int pair) {
  if (pair == 3) {
    return (half >> 14 & 1) << 3 | (half >> 10 & 3) << 1 | (half >> 13 & 1);
  }
  const int shifted = half << (3 * pair);
  return (shifted >> 15 & 1) << 3 | (shifted >> 6 & 7);
}

// Tasks of the kernels: 2 or 4 row blocks (one or two a warpgroup) times a token tile.
inline constexpr int kMxfp4FewTileTokens = 64;    // most of a tile with 2 row blocks
inline constexpr int kMxfp4ManyTileTokens = 128;  // with 4

LAYERED_SGLANG_HOST_DEVICE int mxfp4_token_tile_count(int rows, bool many) {
  const int most = many ? kMxfp4ManyTileTokens : kMxfp4FewTileTokens;
  return (rows + most - 1) / most;
}

// Widths are multiples of 16; `tiles` > 0.
LAYERED_SGLANG_HOST_DEVICE int mxfp4_token_tile_width(int rows, int tiles) {
  const int per_tile = (rows + tiles - 1) / tiles;
  return (per_tile + 15) / 16 * 16;
}

// Task `within` of an expert with `rows` rows in `tiles` = mxfp4_token_tile_count > 0 token tiles.
// One weight tile's tasks follow one another.
LAYERED_SGLANG_HOST_DEVICE TaskPlace place_mxfp4_task(int within, int tiles, int rows) {
  TaskPlace place;
  place.weight_tile = within / tiles;
  place.width = mxfp4_token_tile_width(rows, tiles);
  place.first_row = (within - place.weight_tile * tiles) * place.width;
  const int left = rows - place.first_row;
  place.rows = left < place.width ? left : place.width;
  return place;
}

}  // namespace layered_sglang
