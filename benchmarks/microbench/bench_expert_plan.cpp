// Times the expert plan on the GPU, after checking it against the host's result.
//   cmake -G Ninja -B build/bench -DLAYERED_SGLANG_BENCHMARKS=ON
//   cmake --build build/bench --target bench_expert_plan
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "microbench.h"
#include "plan/expert_plan_cpu.h"
#include "plan/expert_plan_sm90.h"

namespace {

using layered_sglang::ExpertPlanArgs;
using layered_sglang::ExpertPlanPath;
using microbench::check_cuda;
using microbench::DeviceBuffer;
using microbench::UsageError;

constexpr const char* kUsage =
    "usage: bench_expert_plan [--tokens N] [--experts E] [--topk K] [--align A]\n"
    "         [--routing uniform|skewed|one|invalid] [--path auto|single|multi]\n"
    "         [--repeats R] [--seed S] [--check-only] [--no-poison]\n"
    "  one: every pair on expert 0; invalid: half of the ids are -1\n"
    "  --no-poison: leaves device memory as it is, for compute-sanitizer --tool initcheck\n";

struct Options {
  int64_t tokens = 4096;
  int64_t experts = 128;
  int64_t topk = 8;
  int64_t align = 16;
  std::string routing = "uniform";
  std::string path = "auto";
  int64_t repeats = 50;
  int64_t seed = 0;
  bool check_only = false;
  bool poison = true;
};

Options parse(int argc, char** argv) {
  using microbench::parse_choice;
  using microbench::parse_int;
  Options options;
  for (microbench::Arguments args(argc, argv); args.has_next();) {
    const std::string flag = args.next_flag();
    if (flag == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    } else if (flag == "--tokens") {
      options.tokens = parse_int(flag, args.value(), 0, layered_sglang::kMaxPlanPairs);
    } else if (flag == "--experts") {
      options.experts = parse_int(flag, args.value(), 1, layered_sglang::kMaxPlanExperts);
    } else if (flag == "--topk") {
      options.topk = parse_int(flag, args.value(), 1, 64);
    } else if (flag == "--align") {
      options.align = parse_int(flag, args.value(), 1, layered_sglang::kMaxPlanRowAlignment);
    } else if (flag == "--routing") {
      options.routing = parse_choice(flag, args.value(), {"uniform", "skewed", "one", "invalid"});
    } else if (flag == "--path") {
      options.path = parse_choice(flag, args.value(), {"auto", "single", "multi"});
    } else if (flag == "--repeats") {
      options.repeats = parse_int(flag, args.value(), 1, 100000);
    } else if (flag == "--seed") {
      options.seed = parse_int(flag, args.value(), 0, 1 << 30);
    } else if (flag == "--check-only") {
      options.check_only = true;
    } else if (flag == "--no-poison") {
      options.poison = false;
    } else {
      throw UsageError("unknown argument " + flag);
    }
  }
  if (options.tokens * options.topk > layered_sglang::kMaxPlanPairs) {
    throw UsageError("--tokens times --topk: expected at most " +
                     std::to_string(layered_sglang::kMaxPlanPairs));
  }
  if (options.path == "single" &&
      !layered_sglang::expert_plan_fits_single_block(options.tokens * options.topk, options.experts,
                                                     options.align)) {
    throw UsageError("--path single: these sizes do not fit one block");
  }
  return options;
}

ExpertPlanPath path_of(const Options& options) {
  if (options.path == "single") return ExpertPlanPath::kSingleBlock;
  if (options.path == "multi") return ExpertPlanPath::kMultiBlock;
  return ExpertPlanPath::kAutomatic;
}

std::vector<int32_t> make_topk_ids(const Options& options) {
  std::mt19937 random(static_cast<unsigned>(options.seed));
  std::uniform_real_distribution<double> unit(0.0, 1.0);
  std::vector<int32_t> ids(options.tokens * options.topk);
  for (int32_t& id : ids) {
    double fraction = unit(random);
    if (options.routing == "skewed") fraction = std::pow(fraction, 4.0);
    id = static_cast<int32_t>(fraction * options.experts);
    if (options.routing == "one") id = 0;
    if (options.routing == "invalid" && unit(random) < 0.5) id = -1;
  }
  return ids;
}

// The plan's buffers on the device, and the host's result to compare them with.
class Problem {
 public:
  explicit Problem(const Options& options)
      : ids_(make_topk_ids(options)),
        num_pairs_(static_cast<int64_t>(ids_.size())),
        row_capacity_(
            layered_sglang::padded_row_capacity(num_pairs_, options.experts, options.align)),
        path_(path_of(options)),
        topk_ids_(num_pairs_ * sizeof(int32_t), options.poison),
        expert_offsets_((options.experts + 1) * sizeof(int32_t), options.poison),
        expert_counts_(options.experts * sizeof(int32_t), options.poison),
        sorted_rows_(row_capacity_ * sizeof(int32_t), options.poison),
        inverse_rows_(num_pairs_ * sizeof(int32_t), options.poison),
        workspace_(layered_sglang::expert_plan_workspace_bytes(num_pairs_, options.experts,
                                                               options.align, path_),
                   options.poison) {
    topk_ids_.copy_from(ids_);
    args_.topk_ids = topk_ids_.as<int32_t>();
    args_.num_pairs = static_cast<int32_t>(num_pairs_);
    args_.num_experts = static_cast<int32_t>(options.experts);
    args_.row_alignment = static_cast<int32_t>(options.align);
    args_.row_capacity = static_cast<int32_t>(row_capacity_);
    args_.expert_offsets = expert_offsets_.as<int32_t>();
    args_.expert_counts = expert_counts_.as<int32_t>();
    args_.sorted_rows = sorted_rows_.as<int32_t>();
    args_.inverse_rows = inverse_rows_.as<int32_t>();
  }

  void launch(cudaStream_t stream) {
    check_cuda(layered_sglang::expert_plan_sm90(args_, workspace_.as<void>(), stream, path_),
               "expert_plan_sm90");
  }

  // The name of the first output that differs from the host's, or "" when all are equal.
  std::string first_difference() {
    std::vector<int32_t> offsets(args_.num_experts + 1);
    std::vector<int32_t> counts(args_.num_experts);
    std::vector<int32_t> rows(row_capacity_);
    std::vector<int32_t> inverse(num_pairs_);
    ExpertPlanArgs expected = args_;
    expected.topk_ids = ids_.data();
    expected.expert_offsets = offsets.data();
    expected.expert_counts = counts.data();
    expected.sorted_rows = rows.data();
    expected.inverse_rows = inverse.data();
    layered_sglang::expert_plan_cpu(expected);

    if (!expert_offsets_.equals(offsets)) return "expert_offsets";
    if (!expert_counts_.equals(counts)) return "expert_counts";
    if (!sorted_rows_.equals(rows)) return "sorted_rows";
    if (!inverse_rows_.equals(inverse)) return "inverse_rows";
    return "";
  }

  // What must move at least: the ids in, the four outputs out.
  double bytes() const {
    return sizeof(int32_t) * (2.0 * num_pairs_ + row_capacity_ + 2.0 * args_.num_experts + 1);
  }

 private:
  std::vector<int32_t> ids_;
  int64_t num_pairs_;
  int64_t row_capacity_;
  ExpertPlanPath path_;
  DeviceBuffer topk_ids_, expert_offsets_, expert_counts_, sorted_rows_, inverse_rows_, workspace_;
  ExpertPlanArgs args_ = {};
};

int run(const Options& options) {
  microbench::require_sm90();
  microbench::Stream stream;
  Problem problem(options);
  problem.launch(stream);
  check_cuda(cudaStreamSynchronize(stream), "expert_plan_sm90");
  const std::string difference = problem.first_difference();
  if (!difference.empty()) {
    std::fprintf(stderr, "bench_expert_plan: %s differs from the host's result\n",
                 difference.c_str());
    return 1;
  }

  const std::string command = "bench_expert_plan --tokens " + std::to_string(options.tokens) +
                              " --experts " + std::to_string(options.experts) + " --topk " +
                              std::to_string(options.topk) + " --align " +
                              std::to_string(options.align) + " --routing " + options.routing +
                              " --path " + options.path + " --seed " + std::to_string(options.seed);
  if (options.check_only) {
    std::printf("equal to the host's result: %s\n", command.c_str());
    return 0;
  }
  const microbench::Spread us = microbench::time_in_graph(stream, static_cast<int>(options.repeats),
                                                          [&] { problem.launch(stream); });
  std::printf("%8.2f us median (%.2f ... %.2f, p10 %.2f, p90 %.2f)  %8.1f GB/s  %s\n", us.median,
              us.min, us.max, us.p10, us.p90, problem.bytes() / us.median * 1e-3, command.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return microbench::run_main("bench_expert_plan", [&] { return run(parse(argc, argv)); });
}
