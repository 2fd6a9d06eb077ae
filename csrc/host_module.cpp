// layered_sglang._host: the host-side parts that need no GPU and no torch, for Python and tests.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "plan/expert_plan_layout.h"

namespace py = pybind11;

namespace {

py::dict build_facts() {
  py::dict facts;
  facts["version"] = LAYERED_SGLANG_VERSION;
  facts["torch"] = LAYERED_SGLANG_TORCH_VERSION;
  facts["cuda"] = !std::string(LAYERED_SGLANG_CUDA_ARCHITECTURES).empty();
  facts["cuda_architectures"] = LAYERED_SGLANG_CUDA_ARCHITECTURES;
  facts["nvcc"] = LAYERED_SGLANG_NVCC_VERSION;
  facts["cxx"] = LAYERED_SGLANG_CXX_VERSION;
  return facts;
}

int64_t padded_row_capacity(int64_t num_pairs, int64_t num_experts, int64_t row_alignment) {
  if (num_pairs < 0 || num_experts < 1 || row_alignment < 1) {
    throw py::value_error(
        "padded_row_capacity: expected num_pairs >= 0, num_experts >= 1 and row_alignment >= 1, "
        "got " +
        std::to_string(num_pairs) + ", " + std::to_string(num_experts) + " and " +
        std::to_string(row_alignment));
  }
  return layered_sglang::padded_row_capacity(num_pairs, num_experts, row_alignment);
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side parts of layered_sglang's native code: build facts and plan sizes.";
  m.attr("MAX_EXPERTS") = layered_sglang::kMaxPlanExperts;
  m.attr("MAX_ROW_ALIGNMENT") = layered_sglang::kMaxPlanRowAlignment;
  m.attr("MAX_PAIRS") = layered_sglang::kMaxPlanPairs;
  m.def("build_facts", &build_facts,
        "What the native parts were built with: version, torch, cuda (bool), cuda_architectures\n"
        "(\"sm_90a\" or empty), nvcc and cxx versions (nvcc empty without CUDA).");
  m.def("padded_row_capacity", &padded_row_capacity, py::arg("num_pairs"), py::arg("num_experts"),
        py::arg("row_alignment") = 1,
        "The most rows num_pairs (token, expert) pairs take once each expert's rows are padded to\n"
        "a multiple of row_alignment. Raises ValueError for a size below its minimum.");
}
