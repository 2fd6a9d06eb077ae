// How an expert's rows are cut into token tiles by the fp8 kernels. There are two:
//   narrow  weights are wgmma's M and tokens its N, as in the bf16 ones (token_tiles.h), but with
//   two
//           accumulators, so narrower: for few rows an expert, where padding costs more;
//   wide    tokens are wgmma's M, 64 rows a warpgroup: for many rows.
#pragma once

#include "experts/token_tiles.h"

namespace layered_sglang {

inline constexpr int kFp8MaxTileTokens = 120;   // of one narrow task; wgmma's N
inline constexpr int kFp8WideTileTokens = 128;  // of one wide task: two warpgroups' M

LAYERED_SGLANG_HOST_DEVICE int fp8_token_tile_count(int rows, bool wide) {
  const int most = wide ? kFp8WideTileTokens : kFp8MaxTileTokens;
  return (rows + most - 1) / most;
}

// Width of a narrow tile, the same of all of an expert's; `tiles` > 0. Those that the kernels have
// code for: multiples of 16 up to 64 and of 8 from there.
LAYERED_SGLANG_HOST_DEVICE int fp8_token_tile_width(int rows, int tiles) {
  const int per_tile = (rows + tiles - 1) / tiles;
  const int granularity = per_tile > 64 ? 8 : 16;
  return (per_tile + granularity - 1) / granularity * granularity;
}

// Task `within` of an expert that has `rows` rows and `tiles` = fp8_token_tile_count > 0. One
// weight tile's tasks follow one another.
LAYERED_SGLANG_HOST_DEVICE TaskPlace place_fp8_task(int within, int tiles, int rows, bool wide) {
  TaskPlace place;
  place.weight_tile = within / tiles;
  const int token_tile = within - place.weight_tile * tiles;
  place.width = wide ? kFp8WideTileTokens : fp8_token_tile_width(rows, tiles);
  place.first_row = token_tile * place.width;
  const int left = rows - place.first_row;
  place.rows = left < place.width ? left : place.width;
  return place;
}

}  // namespace layered_sglang
