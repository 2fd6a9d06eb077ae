// The operator library: `torch.ops.layered_sglang`. Each operator's file adds its own schema; this
// one says what the library was built with. No Python symbols, so one build serves every Python.
#include <torch/library.h>

#include <string>

namespace {

// The GPU architectures with kernels, as "sm_90a"; empty when built without nvcc.
std::string cuda_architectures() { return LAYERED_SGLANG_CUDA_ARCHITECTURES; }

// The torch that the library was built for; its C++ interface changes with every release.
std::string torch_version() { return LAYERED_SGLANG_TORCH_VERSION; }

}  // namespace

TORCH_LIBRARY(layered_sglang, m) {
  m.def("cuda_architectures() -> str", &cuda_architectures);
  m.def("torch_version() -> str", &torch_version);
}
