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
  const int pair = 2 * (k / 8 % 2) + row.half;
  const int column = k % 2 ^ (pair == 3);
  return {16 * thread + 4 * (k / 16) + 2 * column, pair};
}

// The e2m1 bits of a pair's value in its 16 bits. The first three pairs are the same pattern,
// sign ...... magnitude, shifted by 3 each. The fourth has the bits that they leave, and its two
// columns are exchanged: a rotation by 6 brings them where one multiplication spreads them.
constexpr int mxfp4_bits(uint16_t half, int pair) {
  if (pair == 3) {
    return (half >> 11 & 1) << 3 | (half >> 10 & 1) << 2 | (half >> 13 & 3);
  }
  const int shifted = half << (3 * pair);
  return (shifted >> 15 & 1) << 3 | (shifted >> 6 & 7);
}

// The scales of a row's two halves of a block are in one word with those of the row 8 further on:
// each 16 bits have their row's first scale from bit 7 on, as a bf16's exponent, and above and
// below it what a rotation by 8 makes the second one.
constexpr int mxfp4_scale_word(const Mxfp4Row& row) {
  return kMxfp4ValueBytes + 4 * (8 * row.warp + row.lane);
}
constexpr int mxfp4_scale(uint32_t word, int half, int group) {
  const uint32_t turned = group == 0 ? word : word << 8 | word >> 24;
  return turned >> (16 * half + 7) & 0xFF;
}

// Tasks of the kernels: 2 or 4 row blocks (one or two a warpgroup) times a token tile.
inline constexpr int kMxfp4FewTileTokens = 64;    // most of a tile with 2 row blocks
inline constexpr int kMxfp4ManyTileTokens = 144;  // with 4

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

// The kernel for few rows: its K is at most kMxfp4StreamBlocks K blocks, and its tasks are single
// row blocks.
inline constexpr int kMxfp4StreamBlocks = 48;
inline constexpr int kMxfp4StreamTileTokens = 16;

LAYERED_SGLANG_HOST_DEVICE int mxfp4_stream_tile_count(int rows) {
  return (rows + kMxfp4StreamTileTokens - 1) / kMxfp4StreamTileTokens;
}

// Task `within` of an expert with `rows` rows in `tiles` > 0 token tiles. A block of the grid has
// about `chunk` adjacent tasks, so of several token tiles each takes the same chunk of weights in
// turn: blocks side by side read the same weights at about the same time, and the L2 once.
LAYERED_SGLANG_HOST_DEVICE TaskPlace place_mxfp4_stream_task(int within, int tiles, int rows,
                                                             int row_blocks, int chunk) {
  if (tiles == 1 || chunk > row_blocks) chunk = row_blocks;
  const int whole = row_blocks / chunk * chunk;
  const bool is_rest = within >= whole * tiles;
  if (is_rest) {
    within -= whole * tiles;
    chunk = row_blocks - whole;
  }
  const int number = within / chunk;
  const int tile = number % tiles;
  const int in_chunk = within - number * chunk;
  TaskPlace place;
  place.weight_tile = (is_rest ? whole : number / tiles * chunk) + in_chunk;
  place.first_row = tile * kMxfp4StreamTileTokens;
  const int left = rows - place.first_row;
  place.rows = left < kMxfp4StreamTileTokens ? left : kMxfp4StreamTileTokens;
  place.width = (place.rows + 7) / 8 * 8;
  return place;
}

}  // namespace layered_sglang
