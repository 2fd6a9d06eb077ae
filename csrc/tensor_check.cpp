#include "tensor_check.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <sstream>

namespace layered_sglang {
namespace {

// Python's name of a dtype ("int32"), not C++'s ("Int").
std::string dtype_name(at::ScalarType dtype) { return c10::getDtypeNames(dtype).first; }

std::string describe_layout(at::ScalarType dtype, at::IntArrayRef sizes, at::Device device) {
  std::ostringstream text;
  text << dtype_name(dtype) << " " << sizes << " on " << device;
  return text.str();
}

}  // namespace

std::string describe(const at::Tensor& tensor) {
  return (tensor.is_contiguous() ? "" : "non-contiguous ") +
         describe_layout(tensor.scalar_type(), tensor.sizes(), tensor.device());
}

void check_buffer(const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                  const std::vector<int64_t>& sizes, at::Device device) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == dtype && tensor.sizes() == at::IntArrayRef(sizes) &&
                        tensor.device() == device && tensor.is_contiguous(),
                    name, ": expected contiguous ", describe_layout(dtype, sizes, device), ", got ",
                    describe(tensor));
}

void check_alignment(const char* name, const at::Tensor& tensor, uintptr_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  TORCH_CHECK_VALUE(address % alignment == 0, name, ": expected an address aligned to ", alignment,
                    " bytes, got a remainder of ", address % alignment);
}

}  // namespace layered_sglang
