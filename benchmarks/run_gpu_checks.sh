#!/usr/bin/env bash
# Everything that needs a Hopper GPU, in one call: builds the operators, runs the GPU tests, the
# sanitizer and the benchmarks, and writes the logs to ${OUT:-.}. No network, no SGLang needed.
#
#   benchmarks/run_gpu_checks.sh               builds in build/gpu (cmake, ninja, nvcc)
#   benchmarks/run_gpu_checks.sh PREBUILT      takes PREBUILT/liblayered_sglang_ops.so,
#                                              PREBUILT/bench_expert_plan and
#                                              PREBUILT/bench_grouped_gemm instead
#
# The exit status is 0 only when every step succeeded; summary.txt lists them.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath "${OUT:-.}")
python=${PYTHON:-python3}
failed=0
: >"$out/summary.txt"

step() { # NAME LOG COMMAND...: runs it, appends to LOG, notes the outcome
  local name=$1 log=$out/$2 start=$SECONDS status
  shift 2
  printf '$ %s\n' "$*" >>"$log"
  "$@" >>"$log" 2>&1
  status=$?
  if [ $status -ne 0 ]; then
    failed=1
    echo "--- $name failed; the end of $log:"
    tail -n 25 "$log"
  fi
  printf '%s  %s (status %d, %d s)\n' "$([ $status -eq 0 ] && echo ok || echo FAILED)" \
    "$name" $status $((SECONDS - start)) | tee -a "$out/summary.txt"
  return $status
}

build() {
  cmake -G Ninja -B build/gpu -DLAYERED_SGLANG_CUDA=ON -DLAYERED_SGLANG_BENCHMARKS=ON \
    -DLAYERED_SGLANG_HOST_MODULE=OFF -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build build/gpu
}

expect_status() { # STATUS COMMAND...
  local expected=$1
  shift
  "$@"
  [ $? -eq "$expected" ]
}

# Without it the GPU tests would be skipped, and a skip must not pass for a success here.
step "GPU of compute capability 9.0" gpu.txt "$python" -c \
  'import torch; assert torch.cuda.get_device_capability() == (9, 0), "another GPU"' || exit 1
step "clocks" gpu.txt nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv

if [ $# -ge 1 ]; then
  LAYERED_SGLANG_LIBRARY=$(realpath "$1")/liblayered_sglang_ops.so
  bench=$(realpath "$1")/bench_expert_plan
  bench_gemm=$(realpath "$1")/bench_grouped_gemm
else
  step build build.log build || exit 1
  LAYERED_SGLANG_LIBRARY=$PWD/build/gpu/liblayered_sglang_ops.so
  bench=$PWD/build/gpu/benchmarks/microbench/bench_expert_plan
  bench_gemm=$PWD/build/gpu/benchmarks/microbench/bench_grouped_gemm
fi
export LAYERED_SGLANG_LIBRARY PYTHONPATH=python${PYTHONPATH:+:$PYTHONPATH}

step "GPU tests" pytest.log "$python" -m pytest -m gpu tests/moe -q -p no:cacheprovider
step "bad argument ends with status 2" microbench.log expect_status 2 "$bench" --tokens -1
step "bad size ends with status 2" microbench.log expect_status 2 "$bench_gemm" --inter 44

# Timings first: they want the GPU for themselves, the sanitizers do not.
for tokens in 1 16 64 128 256 512; do
  for path in single multi; do # where does the second path begin to pay?
    step "microbench $tokens $path" microbench.log "$bench" --tokens $tokens --path $path
  done
done
for tokens in 1024 2048 4096 8192 16384; do
  step "microbench $tokens" microbench.log "$bench" --tokens $tokens
done
step "microbench 16384, 512 experts" microbench.log "$bench" --tokens 16384 --experts 512
step "microbench 16384, skewed" microbench.log "$bench" --tokens 16384 --routing skewed
for tokens in 1 16 64 512 2048 4096 8192 16384; do
  step "expert kernels $tokens" microbench.log "$bench_gemm" --tokens $tokens
done
step "expert kernels 4096, pairs" microbench.log "$bench_gemm" --tokens 4096 --path gemm_pairs
grep median "$out/microbench.log"

step "layer benchmark" bench_fused_moe.log \
  "$python" benchmarks/kernel/bench_fused_moe.py --csv "$out/bench_fused_moe.csv"
cat "$out/bench_fused_moe.log"
step "benchmark table" bench_expert_plan.log \
  "$python" benchmarks/kernel/bench_expert_plan.py --csv "$out/bench_expert_plan.csv"
cat "$out/bench_expert_plan.log"
# Small sizes of both paths; each also compares the result with the host's.
cases=(
  "--tokens 0"
  "--tokens 1 --align 1"
  "--tokens 64 --experts 512"
  "--tokens 500 --routing invalid"
  "--tokens 0 --path multi"
  "--tokens 3 --path multi"
  "--tokens 700 --path multi --routing skewed"
  "--tokens 1500 --experts 500 --routing invalid"
  "--tokens 20000 --routing one --align 256"
)
for tool in memcheck racecheck synccheck initcheck; do
  poison=$([ $tool = initcheck ] && echo --no-poison)
  for case in "${cases[@]}"; do
    # shellcheck disable=SC2086  # the case is several words
    step "$tool $case" sanitizer.log \
      compute-sanitizer --tool $tool --error-exitcode 1 "$bench" --check-only $poison $case
  done
done
# The expert kernels, small: tails of tiles and of K, an expert without rows, ids without an expert.
gemm_cases=(
  "--tokens 40 --experts 8 --topk 2 --hidden 264 --inter 144"
  "--tokens 300 --experts 3 --topk 2 --hidden 256 --inter 128 --routing skewed"
  "--tokens 90 --experts 8 --topk 4 --hidden 256 --inter 128 --routing invalid"
)
for tool in memcheck racecheck synccheck initcheck; do
  for path in gemv gemm gemm_pairs; do
    for case in "${gemm_cases[@]}"; do
      # shellcheck disable=SC2086  # the case is several words
      step "$tool $path $case" sanitizer.log \
        compute-sanitizer --tool $tool --error-exitcode 1 "$bench_gemm" --check-only --copies 1 \
        --path $path $case
    done
  done
done
exit $failed
