// What the CUDA microbenchmarks share: arguments, device buffers, timing, errors in one line.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace microbench {

// A bad command line: one line on stderr, exit status 2.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

inline void require_sm90() {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, 0), "no usable CUDA device");
  if (properties.major != 9 || properties.minor != 0) {
    throw std::runtime_error(std::string("expected a GPU of compute capability 9.0, got ") +
                             properties.name);
  }
}

// Walks argv; a flag that lacks its value is a UsageError.
class Arguments {
 public:
  Arguments(int argc, char** argv) : argc_(argc), argv_(argv) {}
  bool has_next() const { return next_ < argc_; }
  std::string next_flag() { return flag_ = argv_[next_++]; }
  std::string value() {
    if (!has_next()) throw UsageError(flag_ + ": expected a value");
    return argv_[next_++];
  }

 private:
  int argc_;
  char** argv_;
  int next_ = 1;
  std::string flag_;
};

inline int64_t parse_int(const std::string& flag, const std::string& text, int64_t low,
                         int64_t high) {
  size_t end = 0;
  int64_t value = 0;
  try {
    value = std::stoll(text, &end);
  } catch (const std::logic_error&) {
    end = 0;
  }
  if (end == 0 || end != text.size() || value < low || value > high) {
    throw UsageError(flag + ": expected a whole number " + std::to_string(low) + " ... " +
                     std::to_string(high) + ", got \"" + text + "\"");
  }
  return value;
}

inline std::string parse_choice(const std::string& flag, const std::string& text,
                                const std::vector<std::string>& choices) {
  std::string list;
  for (const std::string& choice : choices) {
    if (choice == text) return text;
    list += (list.empty() ? "" : ", ") + choice;
  }
  throw UsageError(flag + ": expected one of " + list + "; got \"" + text + "\"");
}

// Device memory. Poisoned (0xCD) an element left unwritten shows in the result; left as it is, it
// shows under compute-sanitizer's initcheck.
class DeviceBuffer {
 public:
  DeviceBuffer(size_t bytes, bool poison) : bytes_(bytes) {
    check_cuda(cudaMalloc(&data_, std::max<size_t>(bytes, 1)), "cudaMalloc");
    if (poison) check_cuda(cudaMemset(data_, 0xCD, std::max<size_t>(bytes, 1)), "cudaMemset");
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <typename T>
  void copy_from(const std::vector<T>& values) {
    check_cuda(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyDefault),
               "cudaMemcpy");
  }
  template <typename T>
  bool equals(const std::vector<T>& expected) const {
    std::vector<T> values(expected.size());
    check_cuda(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDefault), "cudaMemcpy");
    return values == expected;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

class Stream {
 public:
  Stream() {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    // The buffers were filled on the default stream.
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Microseconds of one call.
struct Spread {
  double median, min, max, p10, p90;
};

inline Spread spread_of(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  const auto at = [&](double q) {
    return samples[static_cast<size_t>(q * static_cast<double>(samples.size() - 1) + 0.5)];
  };
  return {at(0.5), samples.front(), samples.back(), at(0.1), at(0.9)};
}

// Captures calls_per_graph calls in one CUDA graph and times `repeats` replays of it, so that host
// launch cost is out of the figure; what lies between dependent kernels on the GPU stays in.
inline Spread time_in_graph(cudaStream_t stream, int repeats, const std::function<void()>& call) {
  constexpr int calls_per_graph = 20;
  constexpr int warm_up = 10;
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls_per_graph; ++i) call();
  check_cuda(cudaStreamEndCapture(stream, &graph), "capture");
  check_cuda(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");

  cudaEvent_t start, stop;
  check_cuda(cudaEventCreate(&start), "cudaEventCreate");
  check_cuda(cudaEventCreate(&stop), "cudaEventCreate");
  std::vector<double> samples;
  for (int i = 0; i < warm_up + repeats; ++i) {
    check_cuda(cudaEventRecord(start, stream), "cudaEventRecord");
    check_cuda(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    check_cuda(cudaEventRecord(stop, stream), "cudaEventRecord");
    check_cuda(cudaEventSynchronize(stop), "cudaEventSynchronize");
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    if (i >= warm_up) samples.push_back(ms * 1e3 / calls_per_graph);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  return spread_of(std::move(samples));
}

// Turns exceptions into one line and an exit status: 2 for usage, 1 for the rest.
inline int run_main(const char* name, const std::function<int()>& run) {
  try {
    return run();
  } catch (const UsageError& error) {
    std::fprintf(stderr, "%s: %s (--help lists the arguments)\n", name, error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace microbench
