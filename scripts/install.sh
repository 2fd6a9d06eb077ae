#!/usr/bin/env bash
# Makes .venv and installs into it; the Makefile calls it, once per step:
#   scripts/install.sh requirements   what pyproject.toml needs to build and to run (SGLang: 9 GB)
#   scripts/install.sh package        the project itself, editable, with its dev extra
# PYTHON chooses the interpreter (python3), MAX_JOBS the compile jobs.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
PYTHON=${PYTHON:-python3}
GIGABYTES=12
BEAT_SECONDS=10
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() { echo "install: $*"; }
die() {
  say "error: $*" >&2
  exit 1
}

check_machine() {
  command -v "$PYTHON" >/dev/null || die "there is no $PYTHON; set PYTHON to a Python 3.10 or newer"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$("$PYTHON" --version) is too old; set PYTHON to a Python 3.10 or newer"
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$PYTHON cannot make a virtual environment; install its venv package (Debian: python3-venv)"
  local free
  free=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge "$GIGABYTES" ] || [ -d "$VENV" ] ||
    die "$free GB are free here, and SGLang with torch takes $GIGABYTES GB while it is installed"
}

# Runs a command. Where pip draws no progress bar, a line now and then says that it goes on.
with_progress() {
  if [ -t 1 ]; then
    "$@"
    return
  fi
  (
    seconds=0
    while sleep "$BEAT_SECONDS"; do
      seconds=$((seconds + BEAT_SECONDS))
      say "... $seconds s, $VENV holds $(du -sm "$VENV" 2>/dev/null | cut -f1) MB"
    done
  ) &
  local beat=$! status=0
  "$@" || status=$?
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  return "$status"
}

pip_install() { with_progress "$VENV/bin/python" -m pip install "$@"; }

# The build requirements and dependencies of pyproject.toml, one a line: resolved together, so that
# no step changes the torch of another.
requirements() {
  "$VENV/bin/python" - <<'PYTHON'
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    content = tomllib.load(file)
print(*content["build-system"]["requires"], *content["project"]["dependencies"], sep="\n")
PYTHON
}

case "${1:-}" in
requirements)
  check_machine
  "$VENV/bin/python" -c '' 2>/dev/null || {
    say "making $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv --clear "$VENV"
  }
  # An older pip shows no progress while it unpacks.
  pip_install --quiet 'pip>=25.1'
  mapfile -t needed < <(requirements)
  say "${needed[*]}"
  say "the first time this takes some minutes and 9 GB"
  pip_install "${needed[@]}"
  ;;
package)
  say "layered-sglang, editable, with its dev extra"
  pip_install --verbose --no-build-isolation -e '.[dev]'
  ;;
*)
  die "expected requirements or package, got '${1:-}'"
  ;;
esac
