// How an expert's rows are cut into wide token tiles, for the kernels and for the host: tokens are
// wgmma's M, so rows come in groups of 64, one a warpgroup.
#pragma once

#include "experts/token_tiles.h"

namespace layered_sglang {

#ifndef LAYERED_SGLANG_WIDE_GROUPS
#define LAYERED_SGLANG_WIDE_GROUPS 2
#endif
#ifndef LAYERED_SGLANG_WIDE_WEIGHT_ROWS
#define LAYERED_SGLANG_WIDE_WEIGHT_ROWS 256
#endif
inline constexpr int kWideWeightRows = LAYERED_SGLANG_WIDE_WEIGHT_ROWS;  // of one task; wgmma's N
inline constexpr int kWideGroups = LAYERED_SGLANG_WIDE_GROUPS;           // warpgroups of one task
inline constexpr int kWideGroupTokens = 64;                              // of each; wgmma's M
inline constexpr int kWideTileTokens = kWideGroups * kWideGroupTokens;

// Token tiles of an expert as the tasks count them: singly, or in pairs in a cluster of two blocks.
LAYERED_SGLANG_HOST_DEVICE int wide_task_tile_count(int rows, int cluster) {
  const int per_task = kWideTileTokens * cluster;
  return (rows + per_task - 1) / per_task;
}

// Task `within` of an expert that has `rows` rows and `tiles` = wide_task_tile_count > 0, for the
// block `rank` of a cluster. Tiles have the same number of groups, or one more than others; of a
// pair, the second may be empty. One weight tile's tasks follow one another.
LAYERED_SGLANG_HOST_DEVICE TaskPlace place_wide_task(int within, int tiles, int rows, int cluster,
                                                     int rank) {
  TaskPlace place;
  place.weight_tile = within / tiles;
  const int token_tile = (within - place.weight_tile * tiles) * cluster + rank;
  const int groups = (rows + kWideGroupTokens - 1) / kWideGroupTokens;
  const int least = groups / (tiles * cluster);
  const int with_more = groups - least * tiles * cluster;
  const int before = token_tile * least + (token_tile < with_more ? token_tile : with_more);
  const int most = (least + (token_tile < with_more ? 1 : 0)) * kWideGroupTokens;
  place.first_row = before * kWideGroupTokens;
  const int left = rows - place.first_row;
  place.rows = left < most ? left : most;
  place.width = place.rows > 0 ? (place.rows + 15) / 16 * 16 : 0;
  return place;
}

// How a grouped GEMM cuts rows.
struct TokenTiles {
  bool wide = false;
  int cluster = 1;  // blocks that share each weight tile: 1 or 2
};

// Tiles of an expert that has `rows` rows, those of both blocks of a pair.
LAYERED_SGLANG_HOST_DEVICE int all_token_tiles(int rows, TokenTiles tiles) {
  if (tiles.cluster == 2) {
    return 2 * (tiles.wide ? wide_task_tile_count(rows, 2) : task_tile_count(rows, 2));
  }
  return tiles.wide ? wide_task_tile_count(rows, 1) : task_tile_count(rows, 1);
}

}  // namespace layered_sglang
