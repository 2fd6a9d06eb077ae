// Tensor maps for the copy engine, made without linking the driver library.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace layered_sglang {

enum class TensorElement { kBf16, kByte };

// A tensor whose innermost dimension is contiguous. Reads beyond `sizes` give zero.
struct TensorMapShape {
  const void* data;     // 16-byte aligned
  int rank;             // 2 ... 4
  uint64_t sizes[4];    // innermost first
  uint64_t strides[3];  // bytes between elements of dimension 1, 2, ...; multiples of 16
  uint32_t box[4];      // of one copy; the innermost is 128 or 64 bytes
  TensorElement element = TensorElement::kBf16;
};

// Boxes land under the swizzle of their rows' 128 or 64 bytes. The map holds the tensor's address,
// so it lives as long.
cudaError_t make_tensor_map(const TensorMapShape& shape, CUtensorMap* map);

}  // namespace layered_sglang
