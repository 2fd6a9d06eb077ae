// Times the kernels of a MoE layer's experts one by one, after checking samples of each result.
//   cmake -G Ninja -B build/bench -DLAYERED_SGLANG_BENCHMARKS=ON
//   cmake --build build/bench --target bench_grouped_gemm
// Weights are rotated between copies, so that they come from memory and not from the L2.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "experts/combine_bf16_sm90.h"
#include "experts/fused_experts_sm90.h"
#include "microbench.h"
#include "plan/expert_plan_sm90.h"

namespace {

using layered_sglang::Activation;
using layered_sglang::FusedExpertsPath;
using microbench::check_cuda;
using microbench::DeviceBuffer;
using microbench::UsageError;
using Bf16 = __nv_bfloat16;

constexpr const char* kUsage =
    "usage: bench_grouped_gemm [--tokens N] [--experts E] [--topk K] [--hidden H] [--inter I]\n"
    "         [--routing uniform|skewed|one|invalid] [--kernel all|gate_up|down|combine|layer]\n"
    "         [--path auto|gemv|gemm|gemm_pairs] [--lag L] [--copies C]\n"
    "         [--repeats R] [--seed S] [--check-only] [--every-path] [--sweep]\n"
    "  one: every pair on expert 0; invalid: half of the ids are -1\n"
    "  --path: of the layer; gemm_pairs also makes gate_up and down share weights in clusters\n"
    "  --lag: GroupedGemmTuning of the grouped GEMMs, in stages\n"
    "  --every-path: checks each path, not only the chosen one\n"
    "  --sweep: paths gemm and gemm_pairs with several lags, one line each\n"
    "  --copies: weight copies to rotate between\n";

// Of an H200, measured: device copy and 8192^3 bf16 matrix product. The floor is made of them.
constexpr double kBytesPerSecond = 4.3e12;
constexpr double kFlopsPerSecond = 790e12;
constexpr double kMaxRelativeError = 0.005;
constexpr int kSamples = 256;
constexpr int64_t kMaxWeightBytes = int64_t{8} << 30;  // of one copy, which the host makes

struct Options {
  int64_t tokens = 4096;
  int64_t experts = 128;
  int64_t topk = 8;
  int64_t hidden = 2048;
  int64_t inter = 768;
  std::string routing = "uniform";
  std::string kernel = "all";
  std::string path = "auto";
  layered_sglang::GroupedGemmTuning tuning;
  bool sweep = false;
  bool every_path = false;
  int64_t copies = 3;
  int64_t repeats = 30;
  int64_t seed = 0;
  bool check_only = false;
};

int64_t multiple_of(const std::string& flag, int64_t value, int64_t divisor) {
  if (value % divisor != 0) {
    throw UsageError(flag + ": expected a multiple of " + std::to_string(divisor) + ", got " +
                     std::to_string(value));
  }
  return value;
}

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
      options.tokens = parse_int(flag, args.value(), 1, 1 << 20);
    } else if (flag == "--experts") {
      options.experts = parse_int(flag, args.value(), 1, layered_sglang::kMaxPlanExperts);
    } else if (flag == "--topk") {
      options.topk = parse_int(flag, args.value(), 1, layered_sglang::kMaxExpertTopK);
    } else if (flag == "--hidden") {
      options.hidden = multiple_of(flag, parse_int(flag, args.value(), 8, 1 << 16),
                                   layered_sglang::kExpertHiddenMultiple);
    } else if (flag == "--inter") {
      options.inter = multiple_of(flag, parse_int(flag, args.value(), 8, 1 << 16),
                                  layered_sglang::kExpertInterMultiple);
    } else if (flag == "--routing") {
      options.routing = parse_choice(flag, args.value(), {"uniform", "skewed", "one", "invalid"});
    } else if (flag == "--kernel") {
      options.kernel =
          parse_choice(flag, args.value(), {"all", "gate_up", "down", "combine", "layer"});
    } else if (flag == "--path") {
      options.path = parse_choice(flag, args.value(), {"auto", "gemv", "gemm", "gemm_pairs"});
    } else if (flag == "--lag") {
      options.tuning.consumer_lag = static_cast<int>(parse_int(flag, args.value(), -1, 7));
    } else if (flag == "--every-path") {
      options.every_path = true;
    } else if (flag == "--sweep") {
      options.sweep = true;
    } else if (flag == "--copies") {
      options.copies = parse_int(flag, args.value(), 1, 16);
    } else if (flag == "--repeats") {
      options.repeats = parse_int(flag, args.value(), 1, 100000);
    } else if (flag == "--seed") {
      options.seed = parse_int(flag, args.value(), 0, 1 << 30);
    } else if (flag == "--check-only") {
      options.check_only = true;
    } else {
      throw UsageError("unknown argument " + flag);
    }
  }
  if (options.experts * options.hidden * options.inter * 6 > kMaxWeightBytes) {
    throw UsageError("--experts, --hidden, --inter: expected at most " +
                     std::to_string(kMaxWeightBytes >> 30) + " GiB of weights");
  }
  return options;
}

FusedExpertsPath path_of(const std::string& name) {
  if (name == "gemv") return FusedExpertsPath::kGemv;
  if (name == "gemm") return FusedExpertsPath::kGroupedGemm;
  if (name == "gemm_pairs") return FusedExpertsPath::kGroupedGemmPairs;
  return FusedExpertsPath::kAutomatic;
}

// Fast enough for gigabytes: a sum of four uniform bytes is near to normal.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 0x9E3779B97F4A7C15) {}
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  float normal() {
    const uint64_t word = bits();
    const int sum = static_cast<int>((word & 255) + (word >> 8 & 255) + (word >> 16 & 255) +
                                     (word >> 24 & 255));
    return static_cast<float>(sum - 510) * (1.0f / 147.8f);
  }

 private:
  uint64_t state_;
};

std::vector<Bf16> normal_values(int64_t size, double scale, Random& random) {
  std::vector<Bf16> values(size);
  for (Bf16& value : values) value = __float2bfloat16(random.normal() * static_cast<float>(scale));
  return values;
}

// Distinct experts in a token's row, as a router chooses them.
std::vector<int32_t> make_topk_ids(const Options& options, Random& random) {
  std::vector<int32_t> ids;
  std::vector<int32_t> row;
  for (int64_t token = 0; token < options.tokens; ++token) {
    row.clear();
    while (static_cast<int64_t>(row.size()) < options.topk) {
      double fraction = random.unit();
      if (options.routing == "skewed") fraction = std::pow(fraction, 4.0);
      int32_t id = static_cast<int32_t>(fraction * static_cast<double>(options.experts));
      const bool repeated = std::find(row.begin(), row.end(), id) != row.end();
      if (repeated && static_cast<int64_t>(row.size()) < options.experts) continue;
      if (options.routing == "one") id = 0;
      if (options.routing == "invalid" && random.unit() < 0.5) id = -1;
      row.push_back(id);
      if (options.routing == "one") row.assign(options.topk, 0);
    }
    ids.insert(ids.end(), row.begin(), row.end());
  }
  return ids;
}

template <typename T>
std::vector<T> to_host(const T* data, int64_t size) {
  std::vector<T> values(size);
  check_cuda(cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDefault), "cudaMemcpy");
  return values;
}

double dot(const Bf16* a, const Bf16* b, int64_t size) {
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    sum += static_cast<double>(__bfloat162float(a[i])) * __bfloat162float(b[i]);
  }
  return sum;
}

// Relative error over the samples of one kernel.
class Errors {
 public:
  void add(double result, double expected) {
    difference_ += (result - expected) * (result - expected);
    norm_ += expected * expected;
    finite_ = finite_ && std::isfinite(result);
  }
  void require_small(const char* kernel) const {
    const double error = norm_ > 0 ? std::sqrt(difference_ / norm_) : std::sqrt(difference_);
    if (!finite_ || error > kMaxRelativeError) {
      throw std::runtime_error(std::string(kernel) + ": relative error " +
                               (finite_ ? std::to_string(error) : "NaN") + ", expected at most " +
                               std::to_string(kMaxRelativeError));
    }
  }

 private:
  double difference_ = 0.0;
  double norm_ = 0.0;
  bool finite_ = true;
};

struct Work {
  double bytes;
  double flops;
};

class Problem {
 public:
  explicit Problem(const Options& options)
      : options_(options),
        random_(static_cast<uint64_t>(options.seed)),
        sizes_{options.tokens, options.topk, options.experts, options.hidden, options.inter},
        pairs_(options.tokens * options.topk),
        ids_(make_topk_ids(options, random_)),
        host_x_(normal_values(options.tokens * options.hidden, 1.0, random_)),
        host_w13_(normal_values(options.experts * 2 * options.inter * options.hidden,
                                2.0 / std::sqrt(options.hidden), random_)),
        host_w2_(normal_values(options.experts * options.hidden * options.inter,
                               1.0 / std::sqrt(options.inter), random_)),
        x_(host_x_.size() * sizeof(Bf16), false),
        topk_ids_(ids_.size() * sizeof(int32_t), false),
        topk_weights_(ids_.size() * sizeof(float), false),
        offsets_((options.experts + 1) * sizeof(int32_t), true),
        counts_(options.experts * sizeof(int32_t), true),
        stored_parts_(options.experts * sizeof(int32_t), true),
        sorted_rows_(pairs_ * sizeof(int32_t), true),
        inverse_rows_(pairs_ * sizeof(int32_t), true),
        plan_workspace_(layered_sglang::expert_plan_workspace_bytes(pairs_, options.experts, 1),
                        true),
        intermediate_(pairs_ * options.inter * sizeof(Bf16), true),
        rows_(pairs_ * options.hidden * sizeof(Bf16), true),
        y_(options.tokens * options.hidden * sizeof(Bf16), true),
        workspace_(layered_sglang::fused_experts_workspace_bytes(sizes_), true) {
    host_weights_.resize(pairs_);
    for (float& weight : host_weights_) weight = static_cast<float>(random_.unit());
    x_.copy_from(host_x_);
    topk_ids_.copy_from(ids_);
    topk_weights_.copy_from(host_weights_);
    for (int64_t copy = 0; copy < options.copies; ++copy) {
      w13_.push_back(std::make_unique<DeviceBuffer>(host_w13_.size() * sizeof(Bf16), false));
      w2_.push_back(std::make_unique<DeviceBuffer>(host_w2_.size() * sizeof(Bf16), false));
      w13_.back()->copy_from(host_w13_);
      w2_.back()->copy_from(host_w2_);
    }
  }

  void plan(cudaStream_t stream) {
    layered_sglang::ExpertPlanArgs args = {};
    args.topk_ids = topk_ids_.as<int32_t>();
    args.num_pairs = static_cast<int32_t>(pairs_);
    args.num_experts = static_cast<int32_t>(options_.experts);
    args.row_alignment = 1;
    args.row_capacity = static_cast<int32_t>(pairs_);
    args.expert_offsets = offsets_.as<int32_t>();
    args.expert_counts = counts_.as<int32_t>();
    args.sorted_rows = sorted_rows_.as<int32_t>();
    args.inverse_rows = inverse_rows_.as<int32_t>();
    args.cleared_counts = stored_parts_.as<int32_t>();
    check_cuda(layered_sglang::expert_plan_sm90(args, plan_workspace_.as<void>(), stream),
               "expert_plan_sm90");
  }

  void gate_up(cudaStream_t stream) {
    check_cuda(
        layered_sglang::gate_up_gemm_bf16_sm90(gemm_args(), x_.as<Bf16>(), next(w13_),
                                               intermediate_.as<Bf16>(), gemm_options(), stream),
        "gate_up_gemm_bf16_sm90");
  }

  void down(cudaStream_t stream) {
    check_cuda(layered_sglang::down_gemm_bf16_sm90(gemm_args(), intermediate_.as<Bf16>(), next(w2_),
                                                   rows_.as<Bf16>(), gemm_options(), stream),
               "down_gemm_bf16_sm90");
  }

  void combine(cudaStream_t stream) {
    check_cuda(
        layered_sglang::combine_bf16_sm90(
            {rows_.as<Bf16>(), inverse_rows_.as<int32_t>(), topk_weights_.as<float>(),
             y_.as<Bf16>(), static_cast<int32_t>(options_.tokens),
             static_cast<int32_t>(options_.topk), static_cast<int32_t>(options_.hidden), 1.0f},
            false, stream),
        "combine_bf16_sm90");
  }

  void layer(cudaStream_t stream) {
    layered_sglang::FusedExpertsArgs args = {};
    args.sizes = sizes_;
    args.x = x_.as<Bf16>();
    args.w13 = next(w13_);
    args.w2 = w2_[(call_ - 1) % w2_.size()]->as<Bf16>();
    args.topk_weights = topk_weights_.as<float>();
    args.topk_ids = topk_ids_.as<int32_t>();
    args.y = y_.as<Bf16>();
    args.workspace = workspace_.as<void>();
    args.activation = Activation::kSwiglu;
    args.routed_scaling_factor = 1.0f;
    args.tuning = options_.tuning;
    check_cuda(layered_sglang::fused_experts_sm90(args, path_of(options_.path), stream),
               "fused_experts_sm90");
  }

  void choose(const std::string& path, const layered_sglang::GroupedGemmTuning& tuning) {
    options_.path = path;
    options_.tuning = tuning;
  }

  // Runs every kernel once and compares samples of each with the host's.
  void check(cudaStream_t stream) {
    plan(stream);
    gate_up(stream);
    down(stream);
    combine(stream);
    check_cuda(cudaStreamSynchronize(stream), "kernels");
    const std::vector<int32_t> inverse = to_host(inverse_rows_.as<int32_t>(), pairs_);
    check_rows(inverse);
    check_output(inverse, "combine");
    check_cuda(cudaMemset(y_.as<void>(), 0xFF, options_.tokens * options_.hidden * sizeof(Bf16)),
               "cudaMemset");
    layer(stream);
    check_cuda(cudaStreamSynchronize(stream), "fused_experts_sm90");
    check_output(inverse, "layer");
  }

  Work gate_up_work() const {
    const double weights = 2.0 * used_experts() * 2 * options_.inter * options_.hidden;
    const double moved =
        2.0 * options_.tokens * options_.hidden + 2.0 * valid_pairs() * options_.inter;
    return {weights + moved, 2.0 * valid_pairs() * 2 * options_.inter * options_.hidden};
  }
  Work down_work() const {
    const double weights = 2.0 * used_experts() * options_.inter * options_.hidden;
    const double moved = 2.0 * valid_pairs() * (options_.inter + options_.hidden);
    return {weights + moved, 2.0 * valid_pairs() * options_.inter * options_.hidden};
  }
  Work combine_work() const {
    return {2.0 * (valid_pairs() + options_.tokens) * options_.hidden,
            2.0 * valid_pairs() * options_.hidden};
  }
  // What a layer cannot do without: weights, inputs, outputs.
  Work layer_work() const {
    const double weights = 2.0 * used_experts() * 3 * options_.inter * options_.hidden;
    return {weights + 4.0 * options_.tokens * options_.hidden,
            gate_up_work().flops + down_work().flops};
  }

 private:
  using Copies = std::vector<std::unique_ptr<DeviceBuffer>>;

  const Bf16* next(const Copies& copies) { return copies[call_++ % copies.size()]->as<Bf16>(); }

  layered_sglang::GroupedGemmArgs gemm_args() const {
    layered_sglang::GroupedGemmArgs args = {};
    args.expert_offsets = offsets_.as<int32_t>();
    args.sorted_rows = sorted_rows_.as<int32_t>();
    args.stored_parts = stored_parts_.as<int32_t>();
    args.num_experts = static_cast<int32_t>(options_.experts);
    args.num_rows = static_cast<int32_t>(pairs_);
    args.top_k = static_cast<int32_t>(options_.topk);
    args.hidden = static_cast<int32_t>(options_.hidden);
    args.inter = static_cast<int32_t>(options_.inter);
    args.activation = Activation::kSwiglu;
    return args;
  }

  layered_sglang::GroupedGemmOptions gemm_options() const {
    layered_sglang::GroupedGemmOptions options;
    const FusedExpertsPath path = options_.path == "auto"
                                      ? layered_sglang::choose_fused_experts_path(sizes_)
                                      : path_of(options_.path);
    options.cluster = path == FusedExpertsPath::kGroupedGemmPairs ? 2 : 1;
    options.weights_once = layered_sglang::reads_weights_once(sizes_);
    options.tuning = options_.tuning;
    options.overlap_launch = false;  // each kernel for itself
    return options;
  }

  double valid_pairs() const {
    return static_cast<double>(
        std::count_if(ids_.begin(), ids_.end(), [](int32_t id) { return id >= 0; }));
  }
  double used_experts() const {
    std::vector<int32_t> used(ids_);
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    return static_cast<double>(used.size()) - (used.front() < 0 ? 1 : 0);
  }

  // Samples of the gate/up result against the weights, and of the down result against the
  // gate/up result that the device computed.
  void check_rows(const std::vector<int32_t>& inverse) {
    const int64_t hidden = options_.hidden;
    const int64_t inter = options_.inter;
    Errors gate_up;
    Errors down;
    for (int sample = 0; sample < kSamples; ++sample) {
      const auto pair = static_cast<int64_t>(random_.bits() % pairs_);
      const int64_t row = inverse[pair];
      if (row < 0) continue;
      const int64_t expert = ids_[pair];
      const std::vector<Bf16> neurons = to_host(intermediate_.as<Bf16>() + row * inter, inter);
      const auto neuron = static_cast<int64_t>(random_.bits() % inter);
      const Bf16* x = &host_x_[pair / options_.topk * hidden];
      const Bf16* gate_row = &host_w13_[(expert * 2 * inter + neuron) * hidden];
      const double gate = dot(gate_row, x, hidden);
      const double up = dot(gate_row + inter * hidden, x, hidden);
      gate_up.add(__bfloat162float(neurons[neuron]), gate / (1.0 + std::exp(-gate)) * up);

      const auto output = static_cast<int64_t>(random_.bits() % hidden);
      const Bf16 result = to_host(rows_.as<Bf16>() + row * hidden + output, 1)[0];
      down.add(__bfloat162float(result),
               dot(&host_w2_[(expert * hidden + output) * inter], neurons.data(), inter));
    }
    gate_up.require_small("gate_up");
    down.require_small("down");
  }

  // Samples of y against the rows of the down GEMM.
  void check_output(const std::vector<int32_t>& inverse, const char* kernel) {
    Errors errors;
    for (int sample = 0; sample < kSamples; ++sample) {
      const auto token = static_cast<int64_t>(random_.bits() % options_.tokens);
      const auto output = static_cast<int64_t>(random_.bits() % options_.hidden);
      double expected = 0.0;
      for (int64_t pair = token * options_.topk; pair < (token + 1) * options_.topk; ++pair) {
        if (inverse[pair] < 0) continue;
        const int64_t at = inverse[pair] * options_.hidden + output;
        expected += host_weights_[pair] * __bfloat162float(to_host(rows_.as<Bf16>() + at, 1)[0]);
      }
      const Bf16 result = to_host(y_.as<Bf16>() + token * options_.hidden + output, 1)[0];
      errors.add(__bfloat162float(result), expected);
    }
    errors.require_small(kernel);
  }

  Options options_;
  Random random_;
  layered_sglang::FusedExpertsSizes sizes_;
  int64_t pairs_;
  size_t call_ = 0;
  std::vector<int32_t> ids_;
  std::vector<Bf16> host_x_, host_w13_, host_w2_;
  std::vector<float> host_weights_;
  DeviceBuffer x_, topk_ids_, topk_weights_;
  DeviceBuffer offsets_, counts_, stored_parts_, sorted_rows_, inverse_rows_, plan_workspace_;
  DeviceBuffer intermediate_, rows_, y_, workspace_;
  Copies w13_, w2_;
};

microbench::Spread time_kernel(const Options& options, cudaStream_t stream,
                               const std::function<void()>& call) {
  return microbench::time_in_graph(stream, static_cast<int>(options.repeats), call);
}

void print_kernel(const char* name, const Work& work, const microbench::Spread& us) {
  const double floor = 1e6 * std::max(work.bytes / kBytesPerSecond, work.flops / kFlopsPerSecond);
  std::printf(
      "%-8s %9.2f us median (%.2f ... %.2f, p10 %.2f, p90 %.2f) %8.1f GB/s %7.1f TFLOP/s"
      "  %5.1f%% of the floor's speed\n",
      name, us.median, us.min, us.max, us.p10, us.p90, work.bytes / us.median * 1e-3,
      work.flops / us.median * 1e-6, 100.0 * floor / us.median);
}

std::string command_of(const Options& options) {
  std::string command =
      "bench_grouped_gemm --routing " + options.routing + " --path " + options.path;
  const std::pair<const char*, int64_t> numbers[] = {
      {"--tokens", options.tokens}, {"--experts", options.experts},
      {"--topk", options.topk},     {"--hidden", options.hidden},
      {"--inter", options.inter},   {"--lag", options.tuning.consumer_lag},
      {"--copies", options.copies}, {"--repeats", options.repeats},
      {"--seed", options.seed}};
  for (const auto& [flag, value] : numbers) {
    command += std::string(" ") + flag + " " + std::to_string(value);
  }
  return command;
}

void time_kernels(const Options& options, Problem& problem, cudaStream_t stream) {
  const auto time = [&](const std::string& name, const Work& work,
                        const std::function<void()>& call) {
    if (options.kernel != "all" && options.kernel != name) return;
    print_kernel(name.c_str(), work, time_kernel(options, stream, call));
  };
  time("gate_up", problem.gate_up_work(), [&] { problem.gate_up(stream); });
  time("down", problem.down_work(), [&] { problem.down(stream); });
  time("combine", problem.combine_work(), [&] { problem.combine(stream); });
  time("layer", problem.layer_work(), [&] { problem.layer(stream); });
}

struct Tried {
  const char* path;
  layered_sglang::GroupedGemmTuning tuning;
};

// One line for each tuning: microseconds of the GEMMs and of the layer.
void sweep(const Options& options, Problem& problem, cudaStream_t stream) {
  const Tried tunings[] = {{"gemm", {0}},       {"gemm", {1}},       {"gemm", {2}},
                           {"gemm", {3}},       {"gemm_pairs", {0}}, {"gemm_pairs", {1}},
                           {"gemm_pairs", {2}}, {"gemm_pairs", {3}}};
  double best = 0.0;
  std::string best_name;
  for (const auto& [path, tuning] : tunings) {
    problem.choose(path, tuning);
    problem.check(stream);
    const auto us = [&](void (Problem::*kernel)(cudaStream_t)) {
      return time_kernel(options, stream, [&] { (problem.*kernel)(stream); }).median;
    };
    const double layer = us(&Problem::layer);
    const std::string name = std::string(path) + " lag " + std::to_string(tuning.consumer_lag);
    std::printf("sweep %6lld tokens  %-28s gate_up %8.1f  down %8.1f  layer %8.1f us\n",
                static_cast<long long>(options.tokens), name.c_str(), us(&Problem::gate_up),
                us(&Problem::down), layer);
    std::fflush(stdout);
    if (best_name.empty() || layer < best) {
      best = layer;
      best_name = name;
    }
  }
  std::printf("best  %6lld tokens  %-28s layer %.1f us\n", static_cast<long long>(options.tokens),
              best_name.c_str(), best);
}

int run(const Options& options) {
  microbench::require_sm90();
  Problem problem(options);
  microbench::Stream stream;
  problem.check(stream);
  if (options.every_path) {
    for (const char* path : {"gemv", "gemm", "gemm_pairs"}) {
      problem.choose(path, options.tuning);
      problem.check(stream);
    }
    problem.choose(options.path, options.tuning);
  }
  std::printf("results checked: %s\n", command_of(options).c_str());
  if (options.check_only) return 0;
  if (options.sweep) {
    sweep(options, problem, stream);
  } else {
    time_kernels(options, problem, stream);
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return microbench::run_main("bench_grouped_gemm", [&] { return run(parse(argc, argv)); });
}
