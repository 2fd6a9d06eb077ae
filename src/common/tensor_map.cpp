#include "common/tensor_map.h"

namespace layered_sglang {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<EncodeTiled>(function);
}

}  // namespace

cudaError_t make_tensor_map(const TensorMapShape& shape, CUtensorMap* map) {
  static const EncodeTiled encode = find_encode_tiled();
  if (encode == nullptr) return cudaErrorNotSupported;
  const uint32_t element_strides[4] = {1, 1, 1, 1};
  const bool is_bf16 = shape.element == TensorElement::kBf16;
  const bool rows_of_64_bytes = shape.box[0] * (is_bf16 ? 2 : 1) == 64;
  const CUresult result =
      encode(map, is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
             static_cast<uint32_t>(shape.rank), const_cast<void*>(shape.data), shape.sizes,
             shape.strides, shape.box, element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
             rows_of_64_bytes ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace layered_sglang
