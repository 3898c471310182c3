# Thin names over the standard tools; everything installs itself into $(VENV).
#
#   make demo     write text with the embedded model        make check   lint and types
#   make test     run the suite                             make bench   latency on this machine
#   make test-gpu the proofs on a GPU (DEVICE=cuda|rocm)    make tune    time kernels' launches, write the best (TUNE=…)
#   make setup    the environment to develop in             make build   compile the C kernels again
#   make clean    remove what was built                     make wheel   build dist/*.whl
#
#   make check-kernels   the proofs of Triton's kernels without a GPU: meaning, machine code, mutations
#   make budgets         write the budgets of machine code anew; read the diff
#   make support         write docs/support.md anew
#
# Another torch: make demo DEVICE=cuda TORCH="torch==2.13.0 --index-url https://…" (README.md lists them).

PYTHON ?= python3
TORCH  ?= torch==2.13.0
DEVICE ?= cpu
VENV   ?= .venv
PROMPT ?= def read_lines(path):
SEED   ?= 2
# The oldest Triton that is supported has an environment of its own beside the newest.
TRITON_OLD   ?= 3.6
VENV_OLD     ?= .venv-triton$(TRITON_OLD)
KERNEL_CACHE ?= $(CURDIR)/.kernel-cache
TUNE   ?=
TIMED  := tests/backends tests/bench tests/kernels/cpu tests/runtime/process tests/runtime/test_async_llm.py

SHELL  := /bin/sh
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet
STAMPS := $(VENV)/.stamps
TORCH_STAMP := $(STAMPS)/torch-$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
INPUTS := pyproject.toml hatch_build.py __init__.py $(wildcard kernels/cpu/*.c kernels/cpu/*.h kernels/cpu/build.py)
# A stamp in an environment whose interpreter has gone says nothing: the rule that makes it is then forced.
BROKEN := $(shell $(BIN)/python -c 'import pip' >/dev/null 2>&1 || echo FORCE)

OLD       := $(VENV_OLD)/.installed
BUDGETS   := tests/machine_code/budgets
CACHED    := TRITON_CACHE_DIR=$(KERNEL_CACHE)
COMPILED  := $(CACHED) OMP_NUM_THREADS=1
MEANINGS  := meaning-nvidia-h200-sxm meaning-amd-mi300x

.PHONY: setup demo test test-gpu tune check lint types bench build wheel clean FORCE \
  check-kernels $(MEANINGS) machine-code machine-code-old mutations budgets support
.DELETE_ON_ERROR:

setup: $(STAMPS)/dev-$(DEVICE)

demo: $(STAMPS)/base-$(DEVICE)
	@$(BIN)/ambidex generate --prompt '$(PROMPT)' --max-tokens 96 --seed $(SEED)

# Two processes, a file's tests together, since what they share is made once; then one by one those that watch a clock.
# What is compiled here check-kernels finds.
test: $(STAMPS)/test-$(DEVICE)
	@$(CACHED) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TIMED:%=--ignore=%)
	@$(CACHED) $(BIN)/python -m pytest $(TIMED)

check: lint types

lint: $(STAMPS)/dev-$(DEVICE)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMPS)/dev-$(DEVICE)
	@$(BIN)/mypy

bench: $(STAMPS)/test-$(DEVICE)
	@$(BIN)/ambidex bench latency

# Two at a time; each keeps its lines together.
check-kernels: $(STAMPS)/test-$(DEVICE) $(OLD)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target machine-code machine-code-old $(MEANINGS) mutations

# Float16 is tried where nothing is even. What the second vendor adds is other launches: it tries them in one dtype
# (sampling has no other than float32).
meaning-nvidia-h200-sxm: CASES = -k 'bfloat16 or float32 or odd'
meaning-amd-mi300x: CASES = -k 'bfloat16 or sample'
$(MEANINGS): meaning-%: $(STAMPS)/test-$(DEVICE)
	@TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider bench/conformance_suite.py \
	  --ambidex-language triton --ambidex-profile $* --ambidex-programs 16 $(CASES)

machine-code: $(STAMPS)/test-$(DEVICE)
	@$(COMPILED) $(BIN)/python -m ambidex.bench.machine_code check $(BUDGETS)

machine-code-old: $(OLD)
	@$(COMPILED) $(VENV_OLD)/bin/python -m ambidex.bench.machine_code check $(BUDGETS)

mutations: $(STAMPS)/test-$(DEVICE)
	@$(COMPILED) $(BIN)/python -m pytest -q -p no:cacheprovider tests/kernels/mutations.py

budgets: $(STAMPS)/test-$(DEVICE) $(OLD)
	@$(COMPILED) $(BIN)/python -m ambidex.bench.machine_code write $(BUDGETS)
	@$(COMPILED) $(VENV_OLD)/bin/python -m ambidex.bench.machine_code write $(BUDGETS)

support: $(STAMPS)/base-$(DEVICE)
	@$(BIN)/python -m ambidex.bench.support docs/support.md

tune: $(STAMPS)/test-$(DEVICE)
	@$(BIN)/ambidex tune $(TUNE)

# Twins and cases on the GPU that is here, the tests that need one, and a case a kernel under its memory checker.
test-gpu: $(STAMPS)/test-$(DEVICE)
	@$(BIN)/python -m pytest tests/kernels/test_conformance.py --ambidex-device gpu
	@$(BIN)/python -m pytest tests/kernels/test_conformance.py --ambidex-device gpu --ambidex-cases full --timeout 1800
	@$(BIN)/python -m pytest tests -m gpu --timeout 1800

build: $(STAMPS)/venv
	@$(BIN)/python kernels/cpu/build.py

wheel: $(STAMPS)/base-$(DEVICE)
	@$(PIP) wheel --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean:
	rm -rf dist build kernels/cpu/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .kernel-cache

# A stamp stands for an install that went through; an interrupted one leaves none, and the next run repeats it.

$(STAMPS)/venv: $(BROKEN)
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
	  echo "ambidex needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo not found): name another, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test "$(VENV)" = .venv || test ! -e "$(VENV)" || test -f "$(VENV)/pyvenv.cfg" || { \
	  echo "$(VENV) exists and is no Python environment: name another, as in: make VENV=.venv $(MAKECMDGOALS)" >&2; exit 1; }
	@{ $(BIN)/python -c '$(NEW_ENOUGH)' && $(BIN)/python -m pip --version; } >/dev/null 2>&1 || { \
	  echo "making the environment in $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV) || { echo "'$(PYTHON)' cannot make environments: install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }; }
	@mkdir -p $(STAMPS) && touch $@

$(TORCH_STAMP): $(STAMPS)/venv
	@echo "installing $(TORCH)"
	@$(PIP) install $(TORCH)
	@rm -f $(STAMPS)/torch-* && touch $@

$(STAMPS)/base-$(DEVICE): $(TORCH_STAMP) $(INPUTS)
	@echo "installing ambidex[$(DEVICE)]"
	@$(PIP) install --editable '.[$(DEVICE)]'
	@touch $@

$(STAMPS)/test-$(DEVICE): $(TORCH_STAMP) $(INPUTS)
	@echo "installing ambidex[$(DEVICE),test]"
	@$(PIP) install --editable '.[$(DEVICE),test]'
	@touch $(STAMPS)/base-$(DEVICE) $@

$(OLD): pyproject.toml
	@echo "making the environment of triton $(TRITON_OLD) in $(VENV_OLD)"
	@$(PYTHON) -m venv --clear $(VENV_OLD)
	@$(VENV_OLD)/bin/python -m pip --disable-pip-version-check --quiet --quiet install $(TORCH) 'triton==$(TRITON_OLD).*'
	@$(VENV_OLD)/bin/python -m pip --disable-pip-version-check --quiet --quiet install --editable '.[cpu]' pytest
	@touch $@

$(STAMPS)/dev-$(DEVICE): $(TORCH_STAMP) $(INPUTS)
	@echo "installing ambidex[$(DEVICE),test,dev]"
	@$(PIP) install --editable '.[$(DEVICE),test,dev]'
	@touch $(STAMPS)/base-$(DEVICE) $(STAMPS)/test-$(DEVICE) $@
