#!/usr/bin/env bash
# What needs a Hopper GPU, step by step; each under its own time limit, so that one that hangs or
# fails leaves the others their turn. Logs go to ${OUT:-.}; summary.txt lists the outcomes.
#
#   benchmarks/run_gpu_checks.sh                  all steps but serve; builds first
#   benchmarks/run_gpu_checks.sh STEP ...         these steps, in this order:
#     tests       pytest -m gpu of the operators
#     sanitizer   compute-sanitizer's four tools over small sizes of every path
#     variants    the GPU tests of the experts on each of PREBUILT/variants
#     sweep       bench_grouped_gemm with several tunings, of the default build and of each variant
#     bench       bench_fused_moe.py: whole layers against SGLang's Triton and torch._grouped_mm
#     fp8         bench_fused_moe_fp8.py: a layer in fp8 against SGLang's Triton and our bf16 one
#     mxfp4       bench_fused_moe_mxfp4.py: gpt-oss-20b's layer against SGLang's triton_kernels
#     plan        bench_expert_plan.py and its microbenchmark
#     ncu         tensor pipe, shared memory, L2 and stalls of the two GEMMs at 4096 tokens
#     answers     tests/server/test_answers_gpu.py: small models' answers, layered against stock SGLang
#                 (needs SGLang; ANSWERS chooses cases as pytest's -k does)
#     serve       a server with --moe-kernels sglang, then layered (needs SGLang; 8 minutes)
#
# PREBUILT=DIR takes what build_gpu_checks.sh made instead of building; a variant's folder does, too.
# SECONDS_LEFT=N keeps all steps together within N seconds. PYTHON: the
# interpreter. No network; SGLang only for answers, for serve, and for bench to compare with it.
# The exit status is 0 only when every step succeeded.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath "${OUT:-.}")
python=${PYTHON:-python3}
end=$((SECONDS + ${SECONDS_LEFT:-86400}))
failed=0

step() { # NAME LOG LIMIT COMMAND...: runs it for at most LIMIT seconds, appends to LOG
  local name=$1 log=$out/$2 limit=$3 start=$SECONDS status
  shift 3
  [ $((end - SECONDS)) -lt "$limit" ] && limit=$((end - SECONDS))
  if [ "$limit" -le 5 ]; then
    echo "skipped  $name (no time left)" | tee -a "$out/summary.txt"
    failed=1
    return 1
  fi
  printf '$ %s\n' "$*" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
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

clocks() {
  nvidia-smi --format=csv,noheader \
    --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu \
    >>"$out/summary.txt"
}

run_tests() {
  step "GPU tests" tests.log 400 "$python" -m pytest -m gpu -q -o addopts= -p no:cacheprovider \
    tests/moe/test_expert_plan_gpu.py tests/moe/test_fused_experts*_gpu.py
  tail -n 3 "$out/tests.log"
}

run_sanitizer() {
  # Tails of tiles and of K, an expert without rows, ids without an expert, several tiles.
  local gemm_cases=(
    "--tokens 40 --experts 8 --topk 2 --hidden 264 --inter 136"
    "--tokens 300 --experts 3 --topk 2 --hidden 256 --inter 128 --routing skewed"
    "--tokens 90 --experts 8 --topk 4 --hidden 256 --inter 128 --routing invalid"
  )
  local plan_cases=(
    "--tokens 500 --routing invalid"
    "--tokens 700 --path multi --routing skewed"
  )
  local tool case poison
  for tool in memcheck racecheck synccheck initcheck; do
    for case in "${gemm_cases[@]}"; do
      # shellcheck disable=SC2086  # the case is several words
      step "$tool experts $case" sanitizer.log 90 compute-sanitizer --tool $tool \
        --error-exitcode 1 "$bench_gemm" --check-only --every-path --copies 1 $case
    done
    poison=$([ $tool = initcheck ] && echo --no-poison)
    for case in "${plan_cases[@]}"; do
      # shellcheck disable=SC2086
      step "$tool plan $case" sanitizer.log 60 compute-sanitizer --tool $tool \
        --error-exitcode 1 "$bench_plan" --check-only $poison $case
    done
  done
  grep -E "^=+ .*(SUMMARY|Error:|not supported)" "$out/sanitizer.log" | sort | uniq -c
}

run_variants() {
  local variant
  for variant in "$bin"/variants/*/; do
    step "variant $(basename "$variant")" variants.log 200 \
      env LAYERED_SGLANG_LIBRARY="$variant/liblayered_sglang_ops.so" "$python" -m pytest -m gpu -q \
      -p no:cacheprovider -k bf16 tests/moe/test_fused_experts_formats_gpu.py
  done
  grep -E "passed|failed" "$out/variants.log"
}

run_sweep() {
  local tokens folder
  step "bad size ends with status 2" sweep.log 30 bash -c "$expect_status_2" _ "$bench_gemm" --inter 44
  for tokens in ${SWEEP_TOKENS:-4096 1024 16384}; do
    for folder in "$bin" "$bin"/variants/*/; do
      [ -x "$folder/bench_grouped_gemm" ] || continue
      step "sweep $tokens $(basename "$folder")" sweep.log 60 "$folder/bench_grouped_gemm" \
        --tokens $tokens --sweep --repeats 10
    done
  done
  grep -E "^(\\$|best)" "$out/sweep.log" | sed -E 's|^.*/([^/]+)/bench_grouped_gemm|\1|'
}

run_bench() {
  local paths=${PATHS:-auto}
  # shellcheck disable=SC2086  # several paths
  step "layer benchmark" bench.log "${BENCH_SECONDS:-330}" "$python" \
    benchmarks/kernel/bench_fused_moe.py --suite --seconds $((${BENCH_SECONDS:-330} - 40)) \
    --paths $paths --csv "$out/bench.csv"
  cat "$out/bench.log"
}

run_mxfp4() {
  step "MXFP4 layer benchmark" mxfp4.log "${MXFP4_SECONDS:-120}" "$python" \
    benchmarks/kernel/bench_fused_moe_mxfp4.py --seconds $((${MXFP4_SECONDS:-120} - 40)) \
    --csv "$out/mxfp4.csv"
  cat "$out/mxfp4.log"
}

run_fp8() {
  step "fp8 layer benchmark" fp8.log "${FP8_SECONDS:-180}" "$python" \
    benchmarks/kernel/bench_fused_moe_fp8.py --seconds $((${FP8_SECONDS:-180} - 40)) \
    --csv "$out/fp8.csv"
  cat "$out/fp8.log"
}

run_plan() {
  local tokens path
  step "bad argument ends with status 2" plan.log 30 bash -c "$expect_status_2" _ "$bench_plan" --tokens -1
  for tokens in 1 16 64 128 256 512; do
    for path in single multi; do # where does the second path begin to pay?
      step "plan $tokens $path" plan.log 30 "$bench_plan" --tokens $tokens --path $path
    done
  done
  for tokens in 1024 4096 16384; do
    step "plan $tokens" plan.log 30 "$bench_plan" --tokens $tokens
  done
  step "plan table" plan.log 120 "$python" benchmarks/kernel/bench_expert_plan.py
  grep median "$out/plan.log"
}

run_ncu() {
  local metrics=gpu__time_duration.sum,sm__cycles_elapsed.avg.per_second
  metrics+=,sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active
  metrics+=,sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active
  metrics+=,l1tex__data_bank_reads.avg.pct_of_peak_sustained_elapsed
  metrics+=,l1tex__data_bank_writes.avg.pct_of_peak_sustained_elapsed
  metrics+=,lts__t_bytes.sum.per_second,lts__t_bytes.avg.pct_of_peak_sustained_elapsed
  metrics+=,dram__bytes.sum.per_second
  local path shown=(ncu --clock-control none --kernel-name "regex:grouped_gemm" --launch-skip 2
    --launch-count 2)
  for path in ${NCU_PATHS:-gemm}; do
    local run=("$bench_gemm" --tokens 4096 --path "$path" --check-only --copies 1)
    step "ncu $path" ncu.log 150 "${shown[@]}" --section SpeedOfLight --section WarpStateStats \
      --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis --print-details all \
      "${run[@]}"
    # Apart, as an unknown metric ends the run.
    step "ncu $path metrics" ncu.log 120 "${shown[@]}" --metrics "$metrics" "${run[@]}"
  done
  grep -E "grouped_gemm|Tensor|tensor|Stall|[Tt]hroughput|Duration|L2|__" "$out/ncu.log" | head -n 120
}

run_answers() {
  # Its cases start their servers side by side: 5 minutes for all, on 16 cores.
  step "answers against stock" answers.log "${ANSWERS_SECONDS:-420}" \
    env OUT="$out" GPU_ANSWERS_SECONDS=$((${ANSWERS_SECONDS:-420} - 40)) "$python" -m pytest -m gpu -q \
    -o addopts= -p no:cacheprovider tests/server/test_answers_gpu.py -k "${ANSWERS:-test}"
  tail -n 8 "$out/answers.log"
}

run_serve() {
  step "servers" serve.log "${SERVE_SECONDS:-570}" "$python" \
    benchmarks/serving/moe_kernels_in_server.py --log /tmp --report "$out/serve.json"
  tail -n 40 "$out/serve.log"
}

# shellcheck disable=SC2016
expect_status_2='"$@"; [ $? -eq 2 ]'

# Without it the GPU tests would be skipped, and a skip must not pass for a success here.
step "GPU of compute capability 9.0" summary.txt 60 "$python" -c \
  'import torch; assert torch.cuda.get_device_capability() == (9, 0), "another GPU"' || exit 1
clocks

if [ -n "${PREBUILT:-}" ]; then
  bin=$(realpath "$PREBUILT")
else
  step build build.log 900 env PYTHON="$python" benchmarks/build_gpu_checks.sh || exit 1
  bin=$PWD/build/gpu-checks
fi
LAYERED_SGLANG_LIBRARY=$bin/liblayered_sglang_ops.so
bench_plan=$bin/bench_expert_plan
bench_gemm=$bin/bench_grouped_gemm
export LAYERED_SGLANG_LIBRARY PYTHONPATH=python${PYTHONPATH:+:$PYTHONPATH}

steps=("$@")
[ ${#steps[@]} -eq 0 ] && steps=(tests sanitizer sweep bench plan ncu)
for name in "${steps[@]}"; do
  if ! declare -F "run_$name" >/dev/null; then
    echo "run_gpu_checks.sh: unknown step $name; the steps are listed at its top" >&2
    exit 2
  fi
done
for name in "${steps[@]}"; do
  echo "=== $name" | tee -a "$out/summary.txt"
  "run_$name"
  clocks
done
exit $failed
