// layered_sglang._host: the host-side parts that need no GPU and no torch, for Python and tests.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "experts/fused_experts_layout.h"
#include "experts/mxfp4_layout.h"
#include "experts/token_tiles.h"
#include "experts/token_tiles_fp8.h"
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

std::string fused_experts_path(int64_t num_tokens, int64_t top_k, int64_t num_experts,
                               int64_t hidden, int64_t inter) {
  switch (
      layered_sglang::choose_fused_experts_path({num_tokens, top_k, num_experts, hidden, inter})) {
    case layered_sglang::FusedExpertsPath::kGemv:
      return "gemv";
    case layered_sglang::FusedExpertsPath::kGroupedGemm:
      return "gemm";
    case layered_sglang::FusedExpertsPath::kGroupedGemmPairs:
      return "gemm_pairs";
    case layered_sglang::FusedExpertsPath::kAutomatic:
      break;
  }
  throw std::logic_error("fused_experts_path: no path chosen");
}

py::tuple token_tiles(int rows, int multiple) {
  if (rows < 1 || multiple < 1) {
    throw py::value_error("token_tiles: expected rows >= 1 and multiple >= 1, got " +
                          std::to_string(rows) + " and " + std::to_string(multiple));
  }
  const int tiles = layered_sglang::token_tile_count(rows, multiple);
  return py::make_tuple(tiles, layered_sglang::token_tile_width(rows, tiles));
}

py::list grouped_gemm_tasks(const std::vector<int>& expert_counts, int num_weight_tiles,
                            int cluster) {
  if (num_weight_tiles < 1 || cluster < 1 || cluster > 2) {
    throw py::value_error(
        "grouped_gemm_tasks: expected num_weight_tiles >= 1 and a cluster of 1 or 2, got " +
        std::to_string(num_weight_tiles) + " and " + std::to_string(cluster));
  }
  py::list tasks;
  for (int expert = 0; expert < static_cast<int>(expert_counts.size()); ++expert) {
    const int rows = expert_counts[expert];
    const int tiles = layered_sglang::task_tile_count(rows, cluster);
    for (int within = 0; within < tiles * num_weight_tiles; ++within) {
      for (int rank = 0; rank < cluster; ++rank) {
        const auto place = layered_sglang::place_task(within, tiles, rows, cluster, rank);
        tasks.append(
            py::make_tuple(expert, place.weight_tile, place.first_row, place.rows, place.width));
      }
    }
  }
  return tasks;
}

py::list fp8_grouped_gemm_tasks(const std::vector<int>& expert_counts, int num_weight_tiles,
                                bool wide) {
  if (num_weight_tiles < 1) {
    throw py::value_error("fp8_grouped_gemm_tasks: expected num_weight_tiles >= 1, got " +
                          std::to_string(num_weight_tiles));
  }
  py::list tasks;
  for (int expert = 0; expert < static_cast<int>(expert_counts.size()); ++expert) {
    const int rows = expert_counts[expert];
    const int tiles = layered_sglang::fp8_token_tile_count(rows, wide);
    for (int within = 0; within < tiles * num_weight_tiles; ++within) {
      const auto place = layered_sglang::place_fp8_task(within, tiles, rows, wide);
      tasks.append(
          py::make_tuple(expert, place.weight_tile, place.first_row, place.rows, place.width));
    }
  }
  return tasks;
}

py::list mxfp4_grouped_gemm_tasks(const std::vector<int>& expert_counts, int num_weight_tiles,
                                  const std::string& path, int chunk) {
  if (num_weight_tiles < 1 || chunk < 1) {
    throw py::value_error(
        "mxfp4_grouped_gemm_tasks: expected num_weight_tiles and chunk >= 1, got " +
        std::to_string(num_weight_tiles) + " and " + std::to_string(chunk));
  }
  if (path != "stream" && path != "few" && path != "many") {
    throw py::value_error("mxfp4_grouped_gemm_tasks: expected path stream, few or many, got " +
                          path);
  }
  const bool stream = path == "stream";
  py::list tasks;
  for (int expert = 0; expert < static_cast<int>(expert_counts.size()); ++expert) {
    const int rows = expert_counts[expert];
    const int tiles = stream ? layered_sglang::mxfp4_stream_tile_count(rows)
                             : layered_sglang::mxfp4_token_tile_count(rows, path == "many");
    for (int within = 0; within < tiles * num_weight_tiles; ++within) {
      const auto place = stream ? layered_sglang::place_mxfp4_stream_task(within, tiles, rows,
                                                                          num_weight_tiles, chunk)
                                : layered_sglang::place_mxfp4_task(within, tiles, rows);
      tasks.append(
          py::make_tuple(expert, place.weight_tile, place.first_row, place.rows, place.width));
    }
  }
  return tasks;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host-side parts of layered_sglang's native code: build facts, sizes, choices.";
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
  m.attr("MAX_TILE_TOKENS") = layered_sglang::kMaxTileTokens;
  m.attr("EXPERT_HIDDEN_MULTIPLE") = layered_sglang::kExpertHiddenMultiple;
  m.attr("EXPERT_INTER_MULTIPLE") = layered_sglang::kExpertInterMultiple;
  m.attr("MAX_EXPERT_TOP_K") = layered_sglang::kMaxExpertTopK;
  m.def("fused_experts_path", &fused_experts_path, py::arg("num_tokens"), py::arg("top_k"),
        py::arg("num_experts"), py::arg("hidden"), py::arg("inter"),
        "The path that fused_experts chooses on a GPU: gemv, gemm or gemm_pairs.");
  m.def("token_tiles", &token_tiles, py::arg("rows"), py::arg("multiple") = 1,
        "(tiles, width): how the grouped GEMMs cut an expert's rows; tiles is a multiple of\n"
        "`multiple`. Raises ValueError for a size below 1.");
  m.def(
      "grouped_gemm_tasks", &grouped_gemm_tasks, py::arg("expert_counts"),
      py::arg("num_weight_tiles"), py::arg("cluster") = 1,
      "[(expert, weight_tile, first_row, rows, width)]: the grouped GEMMs' tasks in their order,\n"
      "of both blocks of a cluster one after the other. first_row is the expert's own; rows is 0\n"
      "or less for an empty tile of a pair. Raises ValueError for a size that cannot be.");
  m.attr("MAX_FP8_TILE_TOKENS") = layered_sglang::kFp8MaxTileTokens;
  m.attr("FP8_WIDE_TILE_TOKENS") = layered_sglang::kFp8WideTileTokens;
  m.def("fp8_grouped_gemm_tasks", &fp8_grouped_gemm_tasks, py::arg("expert_counts"),
        py::arg("num_weight_tiles"), py::arg("wide") = false,
        "The same of the fp8 kernels, whose tasks are single.");
  m.attr("MXFP4_STREAM_TILE_TOKENS") = layered_sglang::kMxfp4StreamTileTokens;
  m.attr("MXFP4_FEW_TILE_TOKENS") = layered_sglang::kMxfp4FewTileTokens;
  m.attr("MXFP4_MANY_TILE_TOKENS") = layered_sglang::kMxfp4ManyTileTokens;
  m.def("mxfp4_grouped_gemm_tasks", &mxfp4_grouped_gemm_tasks, py::arg("expert_counts"),
        py::arg("num_weight_tiles"), py::arg("path"), py::arg("chunk") = 1,
        "The same of the MXFP4 kernels of a path: stream (whose weight tiles are row blocks; a\n"
        "block of its grid takes about `chunk` tasks), few or many.");
}
