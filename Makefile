# Every target makes the virtual environment it needs. Nothing is required but Python >= 3.10, a
# C++ compiler and the package registries.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
VENV_MIN ?= .venv-min
BIN := $(VENV)/bin
BIN_MIN := $(VENV_MIN)/bin

# Two test processes; each keeps to one thread so that they do not compete.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
TEST_FLAGS ?= -n 2 -q
EXTRAS := dev,demo,bench
LIBRARY := erase_kernels/_C.abi3.so

# The oldest supported triton, for which kernels are compiled too. The pinned one is in
# constraints.txt.
TRITON_OLDEST := 3.6.0
TRITON_OLDEST_DIR := build/triton-$(TRITON_OLDEST)

.PHONY: demo test test-min mutants bench gpu-report gpu-check lint format wheel build clean

# torch comes first and pinned: no later requirement may replace it.
define install
$(1)/bin/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools wheel
$(1)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
$(1)/bin/python -m pip install --quiet -c constraints.txt cmake ninja build numpy
endef

$(VENV)/installed: pyproject.toml constraints.txt constraints-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV))
	ERASE_KERNELS_NATIVE=1 $(BIN)/python -m pip install --quiet --no-build-isolation \
	  -c constraints.txt -c constraints-dev.txt -e '.[$(EXTRAS)]'
	touch $@

# Shares the library that `build` leaves beside the sources.
$(VENV_MIN)/installed: pyproject.toml constraints.txt constraints-min.txt
	$(PYTHON) -m venv $(VENV_MIN)
	$(call install,$(VENV_MIN))
	ERASE_KERNELS_NATIVE=0 $(BIN_MIN)/python -m pip install --quiet --no-build-isolation \
	  -c constraints.txt -c constraints-min.txt -e '.[$(EXTRAS)]'
	touch $@

build: $(VENV)/installed
	ERASE_KERNELS_NATIVE=1 $(BIN)/python setup.py --quiet build_ext --inplace

demo: build
	$(BIN)/python -m erase demo

test: build
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_FLAGS) tests

test-min: build $(VENV_MIN)/installed
	$(TEST_ENV) $(BIN_MIN)/python -m pytest $(TEST_FLAGS) tests

mutants: build
	$(TEST_ENV) $(BIN)/python tests/mutants/run.py

bench: build
	$(BIN)/python -m bench
	$(BIN)/python -m bench.prefill

$(TRITON_OLDEST_DIR)/installed: | $(VENV)/installed
	rm -rf $(TRITON_OLDEST_DIR)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON_OLDEST_DIR) \
	  triton==$(TRITON_OLDEST)
	touch $@

gpu-report: build $(TRITON_OLDEST_DIR)/installed
	$(BIN)/python -m tools.triton_report --with $(TRITON_OLDEST_DIR) $(REPORT_FLAGS)

# On a machine with a GPU, with a python that has torch, triton, transformers and pytest already.
gpu-check:
	$(PYTHON) -m tools.gpu_check $(CHECK_FLAGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

wheel: build
	ERASE_KERNELS_NATIVE=1 $(BIN)/python -m build --wheel --no-isolation --outdir dist

clean:
	rm -rf build dist *.egg-info $(LIBRARY) $(VENV) $(VENV_MIN)
