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
EXTRAS := dev,demo,bench,release
LIBRARY := erase_kernels/_C.abi3.so

# The oldest supported triton, for which kernels are compiled too. The pinned one is in
# constraints.txt.
TRITON_OLDEST := 3.6.0
TRITON_OLDEST_DIR := build/triton-$(TRITON_OLDEST)

CUDA_TOOLKIT := build/cuda-toolkit
RELEASE_ENV = PATH="$(abspath $(BIN)):$$PATH" \
  SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) \
  $(if $(wildcard $(CUDA_TOOLKIT)/installed),CUDA_HOME=$(abspath $(CUDA_TOOLKIT))/nvidia/cu13)

.PHONY: demo test test-min mutants bench accuracy train gpu-report gpu-check lint format wheel sdist \
  wheel-check cuda-toolkit build clean

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
	$(BIN)/python -m erase demo --reader bench/accuracy/weights

test: build
	$(TEST_ENV) $(BIN)/python -m pytest $(TEST_FLAGS) tests

test-min: build $(VENV_MIN)/installed
	$(TEST_ENV) $(BIN_MIN)/python -m pytest $(TEST_FLAGS) tests

mutants: build
	$(TEST_ENV) $(BIN)/python tests/mutants/run.py

bench: build
	$(BIN)/python -m bench
	$(BIN)/python -m bench.prefill
	$(BIN)/python -m bench.decode

# Compared with docs/accuracy.md; 500 samples of each size, ACCURACY_FLAGS=--quick for fewer.
accuracy: build
	$(BIN)/python -m bench.accuracy $(ACCURACY_FLAGS)

# The reading model from scratch; goes on where it was stopped. Threads that wait must not spin:
# another process draws the images.
train: build
	GOMP_SPINCOUNT=1000 $(BIN)/python -m bench.accuracy.train --output build/accuracy/training \
	  $(TRAIN_FLAGS)

$(TRITON_OLDEST_DIR)/installed: | $(VENV)/installed
	rm -rf $(TRITON_OLDEST_DIR)
	$(BIN)/python -m pip install --quiet --no-deps --target $(TRITON_OLDEST_DIR) \
	  triton==$(TRITON_OLDEST)
	touch $@

# nvcc 13 is needed for the first; both run, whatever becomes of it.
gpu-report: build $(TRITON_OLDEST_DIR)/installed
	status=0; \
	$(BIN)/python -m tools.cuda_report $(CUDA_REPORT_FLAGS) || status=1; \
	$(BIN)/python -m tools.triton_report --with $(TRITON_OLDEST_DIR) $(REPORT_FLAGS) || status=1; \
	exit $$status

# On a machine with a GPU, with a python that has torch, triton, transformers and pytest already,
# with nvcc and cmake for the native library, and compute-sanitizer where it works.
gpu-check:
	$(PYTHON) -m tools.gpu_check $(CHECK_FLAGS)

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*' 'tests/emu/*.h' 'tests/emu/*.cpp')

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*' 'tests/emu/*.h' 'tests/emu/*.cpp')

# --- Releases ---

# A wheel is built from the sdist: nothing of this tree gets into it that the sdist does not have.
# Its date is the commit's, and the directory is always the same one (nvcc makes names of it), so
# that the same sources give the same wheel.
sdist: $(VENV)/installed
	rm -rf dist/*.tar.gz build/release
	mkdir -p build/release
	$(RELEASE_ENV) $(BIN)/python -m build --sdist --no-isolation --outdir dist \
	  > build/release/sdist.log 2>&1 || (tail -n 12 build/release/sdist.log; exit 1)

# One wheel for CPU and CUDA. nvcc 13 must be there (make cuda-toolkit brings one), neither a GPU nor
# a torch with CUDA. Local symbols go; the others stay, for kernel-abi-check reads nothing else.
wheel: sdist
	rm -rf dist/*.whl
	tar -xzf dist/*.tar.gz -C build/release
	$(RELEASE_ENV) ERASE_KERNELS_NATIVE=1 ERASE_KERNELS_CUDA=1 LDFLAGS=-Wl,--discard-all \
	  $(BIN)/python -m build --wheel --no-isolation --outdir build/release \
	  build/release/erase_kernels-*/ > build/release/wheel.log 2>&1 \
	  || (tail -n 12 build/release/wheel.log; exit 1)
	$(RELEASE_ENV) $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist \
	  build/release/*.whl
	ls -l dist

# Installs what dist/ holds beside a CPU torch and beside a CUDA torch (4.6 GB under build/, kept),
# and uses it from elsewhere. WHEEL_CHECK_FLAGS="--only cpu" is a partial check.
wheel-check: $(VENV)/installed
	$(BIN)/python -m tools.wheel_check $(WHEEL_CHECK_FLAGS)

# nvcc of the package index, for a machine without a CUDA toolkit.
cuda-toolkit: $(CUDA_TOOLKIT)/installed

$(CUDA_TOOLKIT)/installed: requirements-cuda.txt | $(VENV)/installed
	rm -rf $(CUDA_TOOLKIT)
	$(BIN)/python -m pip install --quiet --no-deps --target $(CUDA_TOOLKIT) -r requirements-cuda.txt
	ln -s lib $(CUDA_TOOLKIT)/nvidia/cu13/lib64
	$(CUDA_TOOLKIT)/nvidia/cu13/bin/nvcc --version
	touch $@

clean:
	rm -rf build dist *.egg-info $(LIBRARY) $(VENV) $(VENV_MIN)
