// The tensor map of the weights of a grouped GEMM whose tasks have kTileWeightRows of them.
#pragma once

#include "common/tensor_map.h"
#include "experts/token_tiles.h"

namespace layered_sglang {

// Weights [experts, parts, rows, depth] of `bytes` an element. A box is 128 bytes of depth times as
// many rows of each part, half a tile in all.
inline cudaError_t make_weight_map(const void* weights, int bytes, int experts, int parts, int rows,
                                   int depth, CUtensorMap* map) {
  const auto row_bytes = static_cast<uint64_t>(depth) * bytes;
  const auto part_bytes = row_bytes * rows;
  return make_tensor_map(
      {weights,
       4,
       {static_cast<uint64_t>(depth), static_cast<uint64_t>(rows), static_cast<uint64_t>(parts),
        static_cast<uint64_t>(experts)},
       {row_bytes, part_bytes, part_bytes * parts},
       {static_cast<uint32_t>(128 / bytes), static_cast<uint32_t>(kTileWeightRows / 2 / parts),
        static_cast<uint32_t>(parts), 1},
       bytes == 1 ? TensorElement::kByte : TensorElement::kBf16},
      map);
}

}  // namespace layered_sglang
