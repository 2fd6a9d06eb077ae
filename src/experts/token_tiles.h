// How an expert's rows are cut into token tiles, for the kernels and for the host.
#pragma once

#if defined(__CUDACC__)
#define LAYERED_SGLANG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LAYERED_SGLANG_HOST_DEVICE inline
#endif

namespace layered_sglang {

inline constexpr int kTileWeightRows = 256;  // of one task; wgmma's M dimension
#ifndef LAYERED_SGLANG_MAX_TILE_TOKENS
#define LAYERED_SGLANG_MAX_TILE_TOKENS 192
#endif
inline constexpr int kMaxTileTokens = LAYERED_SGLANG_MAX_TILE_TOKENS;  // of one task; wgmma's N
// Widths are multiples of 16 up to kFineTileTokens and of 8 from there, where padding costs more.
inline constexpr int kFineTileTokens = 64;

// Tiles of equal width: 270 rows become 2 * 136 and not 192 + 80, so no task is mostly padding.
// The blocks of a cluster share their weights, so they take tiles in pairs (`multiple` 2), of which
// the second may be empty.
LAYERED_SGLANG_HOST_DEVICE int token_tile_count(int rows, int multiple) {
  const int per_step = kMaxTileTokens * multiple;
  return (rows + per_step - 1) / per_step * multiple;
}

// Width of each tile; `tiles` > 0.
LAYERED_SGLANG_HOST_DEVICE int token_tile_width(int rows, int tiles) {
  const int per_tile = (rows + tiles - 1) / tiles;
  const int granularity = per_tile > kFineTileTokens ? 8 : 16;
  return (per_tile + granularity - 1) / granularity * granularity;
}

// Token tiles of an expert as the tasks count them: singly, or in pairs in a cluster of two blocks.
LAYERED_SGLANG_HOST_DEVICE int task_tile_count(int rows, int cluster) {
  return token_tile_count(rows, cluster) / cluster;
}

struct TaskPlace {
  int weight_tile;
  int first_row;  // of the expert's
  int rows;       // that exist; 0 or less for an empty tile of a pair
  int width;      // columns that are computed
};

// Task `within` of an expert that has `rows` rows and `tiles` = task_tile_count > 0, for the block
// `rank` of a cluster. One weight tile's tasks follow one another.
LAYERED_SGLANG_HOST_DEVICE TaskPlace place_task(int within, int tiles, int rows, int cluster,
                                                int rank) {
  TaskPlace place;
  place.weight_tile = within / tiles;
  const int token_tile = (within - place.weight_tile * tiles) * cluster + rank;
  place.width = token_tile_width(rows, tiles * cluster);
  place.first_row = token_tile * place.width;
  const int left = rows - place.first_row;
  place.rows = left < place.width ? left : place.width;
  return place;
}

}  // namespace layered_sglang
