#!/usr/bin/env bash
# Builds what run_gpu_checks.sh takes as PREBUILT, without a GPU, into build/gpu-checks: the operators
# and the microbenchmarks, and under variants/ the same with other compile-time settings of the
# grouped GEMMs. Arguments: the variants to build (default: all). PYTHON: the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
# An absolute path: CMake ignores a relative one.
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
target=build/gpu-checks
declare -A settings=(
  [t160]="MAX_TILE_TOKENS=160"
)

build() { # FOLDER SETTINGS TO
  cmake -G Ninja -B "$1" -DLAYERED_SGLANG_CUDA=ON -DLAYERED_SGLANG_BENCHMARKS=ON \
    -DLAYERED_SGLANG_HOST_MODULE=OFF -DPython_EXECUTABLE="$python" \
    "-DLAYERED_SGLANG_GEMM_VARIANT=$2"
  cmake --build "$1" -j "${MAX_JOBS:-2}"
  mkdir -p "$3"
  cp "$1"/liblayered_sglang_ops.so "$1"/benchmarks/microbench/bench_{grouped_gemm,expert_plan} "$3"
}

build build/gpu "" $target
for variant in "${@:-${!settings[@]}}"; do
  for name in $variant; do
    build "build/gpu-$name" "${settings[$name]}" "$target/variants/$name"
  done
done
du -sh $target
