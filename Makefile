# Two commands do everything, set-up included: `make demo` and `make test`.
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN    := .venv/bin
STAMP  := .venv/.installed
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Levels of the CPU (see CONTRIBUTING.md) whose kernels may stay untested, separated by commas.
SKIPPED_LEVELS ?=

.PHONY: help setup demo test lint lib test-python test-bazel bench bench-lm scale study clean system-build system-test

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv from pyproject.toml, the operator library included

demo: lib  ## ternarize the embedded vision-language model, compare the variants, answer questions
	$(BIN)/tfmot-ternary demo

test: lint test-bazel test-python  ## lint, types, C++ tests (x86-64, sanitizers, ARM64), Python tests

lint: $(STAMP)  ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -co --exclude-standard '*.cc' '*.h' '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror

# The editable install builds the library once; this keeps it up to date with the C++ sources.
lib: $(STAMP)  ## build tfmot_ternary/libtfmot_ternary_ops.so with the system's compiler
	$(BIN)/python custom_ops/build.py

# A file is one process's: its fixtures are made once.
test-python: lib
	$(BIN)/python -m pytest -n auto --dist loadfile

# On this CPU; with the sanitizers; for ARM64 under qemu, also as older CPUs that must not meet a newer
# one's instructions. Then: did every kernel run?
test-bazel: system-test  ## the C++ tests
	rm -rf build/tests && mkdir -p build/tests
	$(call bazel-test,host,//...)
	$(call bazel-test,sanitize,//...,--config=sanitize)
	$(call bazel-test,arm64,//...,--config=arm64)
	$(call bazel-test,arm64-dotprod,$(OLDER_CPU_TESTS),--config=arm64-dotprod)
	$(call bazel-test,arm64-neon,$(OLDER_CPU_TESTS),--config=arm64-neon)
	$(PYTHON) custom_ops/kernel_coverage.py --skipped_levels='$(SKIPPED_LEVELS)' build/tests/*.json

OLDER_CPU_TESTS := //custom_ops:kernels_fully_connected_test //custom_ops:kernels_row_test

# The build events name the logs that kernel_coverage.py reads.
bazel-test = bazel test $(BAZEL_CONFIG) $(3) \
  --build_event_json_file='$(CURDIR)/build/tests/$(1).json' $(2)

# Debian's Bazel finds its rule sets on the disk; any other fetches them (see .bazelrc).
BAZEL_CONFIG ?= $(shell test -d /usr/share/bazel/tools/platforms && echo --config=offline)

# llama-cpp-python comes as source: its compilation takes minutes, once. It needs no image models here.
bench: lib  ## goals, limits of the machine, our operators against LiteRT's and llama.cpp's
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.bench

bench-lm: lib  ## whole language models: tokens per second and memory against llama.cpp's and LiteRT's
	CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks.bench_lm

# Resumable: what is done is kept in build/study.
study: lib  ## the quality study: initializers, granularity, losses, recipes, versions (up to an hour)
	$(BIN)/python -m benchmarks.quality

# Needs 10 GB of disk. Random weights: size, memory and speed, never quality.
scale: lib  ## presets of moondream2's text model and PaliGemma 3B to .tflite: time, memory, size (15 minutes)
	$(BIN)/python -m benchmarks.scale

$(STAMP): pyproject.toml | system-build
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# Debian packages: installed when we are root, named otherwise.
define need
	@command -v $(1) >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $(2)"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(2) >/dev/null; \
	  else echo "missing: $(1). Install it (Debian: apt-get install $(2)) and run make again." >&2; exit 1; fi; }
endef

system-build:
	$(call need,c++,g++)
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || [ "$$(id -u)" != 0 ] || apt-get install -y -qq python3-venv >/dev/null
	@$(PYTHON) -c 'import ensurepip' || { echo "missing: Python's venv (Debian: apt-get install python3-venv)" >&2; exit 1; }

system-test:
	$(call need,bazel,bazel-bootstrap bazel-platforms)
	$(call need,aarch64-linux-gnu-g++,g++-aarch64-linux-gnu)
	$(call need,qemu-aarch64-static,qemu-user-static)

clean:  ## remove what was built, .venv too
	rm -rf .venv build dist *.egg-info tfmot_ternary/*.so
