# One command each on a new machine: the first one makes .venv, which takes minutes and 9 GB.
# PYTHON=python3.12 chooses the interpreter.

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(sort CMakeLists.txt setup.py $(wildcard cmake/* csrc/* src/*/*))
CXX_FILES = $(shell find csrc src benchmarks -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel install clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: install ## three prefill schedules drawn in the terminal (DEMO_ARGS="--only layered")
	@$(BIN)/python -m layered_sglang.demo $(DEMO_ARGS)

test: install ## all tests, with real servers; GPU tests skip where there is none (TEST_ARGS="-k plan")
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

lint: install ## ruff, mypy, clang-format: check, change nothing
	@# pytest imports test files by their names alone.
	@! git ls-files 'tests/**/test_*.py' | sed 's|.*/||' | sort | uniq -d | grep .
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

wheel: install ## a wheel in dist/ (LAYERED_SGLANG_NATIVE=auto, cuda, cpu or 0)
	$(BIN)/python -m pip wheel --verbose --no-build-isolation --no-deps --wheel-dir dist .

install: $(VENV)/.package ## .venv with everything; again only after a change

clean: ## remove what was built; .venv stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find python tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Stamps: what has to be installed again when these files change.
$(VENV)/.requirements: pyproject.toml scripts/install.sh
	@scripts/install.sh requirements
	@touch $@

$(VENV)/.package: $(VENV)/.requirements $(NATIVE)
	@scripts/install.sh package
	@touch $@
