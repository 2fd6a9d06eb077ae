// Checks of an operator's tensors. A message names the tensor, what was expected and what came.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace layered_sglang {

// "int64 [4, 8] on cuda:0", with "non-contiguous" in front where it is that.
std::string describe(const at::Tensor& tensor);

// Raises ValueError unless `tensor` is contiguous, of this dtype and these sizes on this device.
void check_buffer(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                  const std::vector<int64_t>& sizes, at::Device device);

// Raises ValueError unless `tensor` starts at a multiple of `alignment` bytes.
void check_alignment(const char* name, const at::Tensor& tensor, uintptr_t alignment);

}  // namespace layered_sglang
