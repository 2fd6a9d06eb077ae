#!/usr/bin/env bash
# The evaluation on one GPU: scenarios one after another, each with its report. Called again with the
# same folder it goes on from where it was cut off.
#
#   benchmarks/run_evaluation.sh DIR [SECONDS [SCENARIO ...]]
#
# DIR gets a folder for each scenario of benchmarks/serving/scenarios/ (default: evaluation-qwen3-repeats,
# which took 28 minutes on an H200, evaluation-qwen3-rates, chunk-sizes, evaluation-experts,
# evaluation-gpt-oss).
# SECONDS: for all together (default: no limit). PYTHON: the interpreter. BENCH_ARGS: more for bench run.
# The exit status is 0 only when all was measured.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: benchmarks/run_evaluation.sh DIR [SECONDS [SCENARIO ...]]}
end=$((SECONDS + ${2:-86400}))
shift $(($# < 2 ? $# : 2))
python=${PYTHON:-python3}
failed=0
scenarios=("$@")
[ ${#scenarios[@]} -eq 0 ] && scenarios=(evaluation-qwen3-repeats evaluation-qwen3-rates chunk-sizes evaluation-experts evaluation-gpt-oss)
for scenario in "${scenarios[@]}"; do
  left=$((end - SECONDS))
  if [ $left -lt 30 ]; then
    echo "$scenario: no time left"
    failed=1
    continue
  fi
  # shellcheck disable=SC2086  # several arguments
  timeout --signal=INT --kill-after=20 $((left + 30)) "$python" -m layered_sglang.bench run \
    "benchmarks/serving/scenarios/$scenario.yaml" --output "$folder/$scenario" \
    --time-limit $left ${BENCH_ARGS:-} || failed=1
  "$python" -m layered_sglang.bench report "$folder/$scenario" || failed=1
done
exit $failed
