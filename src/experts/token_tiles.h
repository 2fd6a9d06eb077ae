// How an expert's rows are cut into token tiles, for the kernels and for the host.
#pragma once

#if defined(__CUDACC__)
#define LAYERED_SGLANG_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LAYERED_SGLANG_HOST_DEVICE inline
#endif

namespace layered_sglang {

inline constexpr int kTileWeightRows = 256;  // of one task; wgmma's M dimension
inline constexpr int kMaxTileTokens = 160;   // of one task; wgmma's N dimension
inline constexpr int kTokenGranularity = 16;

// Tiles of equal width: 270 rows become 2 * 144 and not 160 + 112, so no task is mostly padding.
// The blocks of a cluster share their weights, so they take tiles in pairs (`multiple` 2), of which
// the second may be empty.
LAYERED_SGLANG_HOST_DEVICE int token_tile_count(int rows, int multiple) {
  const int per_step = kMaxTileTokens * multiple;
  return (rows + per_step - 1) / per_step * multiple;
}

// Width of each tile, a multiple of the granularity; `tiles` > 0.
LAYERED_SGLANG_HOST_DEVICE int token_tile_width(int rows, int tiles) {
  const int per_tile = (rows + tiles - 1) / tiles;
  return (per_tile + kTokenGranularity - 1) / kTokenGranularity * kTokenGranularity;
}

}  // namespace layered_sglang
