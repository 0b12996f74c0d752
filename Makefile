# mosaicbank: the few commands of its development. `make help` lists them.
# Everything installs into .venv/; nothing else on the system is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The release that tch 0.24 is made for. A CPU-only build of it does as well.
TORCH ?= torch==2.11.0
PYTEST_ARGS ?=

VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
RUST_SOURCES := Cargo.toml Cargo.lock setup.py $(shell find src -type f)

# Where cargo finds libtorch: in .venv's torch. setup.py sets the same variables to the same values,
# so that libtorch's C++ shim is compiled once per profile.
TORCH_DIR = $(shell $(PY) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
ENGINE_ENV = env -u LIBTORCH_USE_PYTORCH LIBTORCH=$(TORCH_DIR) LIBTORCH_INCLUDE=$(TORCH_DIR) \
	LIBTORCH_LIB=$(TORCH_DIR) LIBTORCH_CXX11_ABI=1 \
	LD_LIBRARY_PATH=$(TORCH_DIR)/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}
export PYO3_PYTHON := $(PY)
# As setuptools-rust sets it, so that pyo3 is built once.
export PYO3_BUILD_EXTENSION_MODULE := 1

.DEFAULT_GOAL := help
.PHONY: help install test test-rust test-rust-core test-rust-engine test-python test-long
.PHONY: bench lint lint-rust lint-python format clean

help: ## list these commands
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-16s %s\n", $$1, $$2 }'

# --- install ---------------------------------------------------------------------------------

install: $(VENV)/.built ## create .venv/ with torch, the tools, and both extension modules

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	@touch $@

# The lists are pyproject.toml's: the build's, the package's, and the extras engine and dev.
$(VENV)/.deps: pyproject.toml $(VENV)/.made
	$(PY) -c 'import tomllib; t = tomllib.load(open("pyproject.toml", "rb")); p = t["project"]; o = p["optional-dependencies"]; print(*t["build-system"]["requires"], *p["dependencies"], *o["engine"], *o["dev"], sep="\n")' > $(VENV)/requirements.txt
	$(PY) -m pip install --quiet '$(TORCH)' -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(VENV)/.deps $(RUST_SOURCES)
	MOSAICBANK_ENGINE=1 $(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

# --- test ------------------------------------------------------------------------------------

test: test-rust test-python ## run the tests of the crate and of the Python package

test-rust: test-rust-core test-rust-engine ## ... of the crate, without and with libtorch

# Unit tests run in the second alone: with the feature they are all there, and are compiled once.
test-rust-core:
	cargo test --locked --test '*'
	cargo test --locked --doc

test-rust-engine: $(VENV)/.deps
	$(ENGINE_ENV) OMP_WAIT_POLICY=PASSIVE cargo test --locked --features engine --lib --test 'engine*'

test-python: install ## ... of the Python package
	$(PY) -m pytest $(PYTEST_ARGS)

test-long: install ## run the tests that take long, or need a quiet machine
	MOSAICBANK_SOAK=60 cargo test --locked --test bank_crash
	MOSAICBANK_LONG_TESTS=1 $(PY) -m pytest $(PYTEST_ARGS) tests/python/test_engine.py \
	  tests/python/test_engine_times.py tests/python/parity/test_networks.py

# --- Detectron2 ------------------------------------------------------------------------------

# The trainer has its own environment, as it does for users. DETECTRON2_PYTHON=... names a Python that
# has Detectron2. Otherwise .venv-d2/ is created with a third-party build of Detectron2 that the
# package index has for CPython 3.10.
DETECTRON2_PYTHON ?=
VENV_D2 := .venv-d2
D2_TORCH ?= torch==2.3.1 torchvision==0.18.1
PYTHON310 ?= $(shell for p in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python3.10; do \
	$$p -c 'import ensurepip' 2>/dev/null && echo $$p && break; done)
D2_PY = $(if $(DETECTRON2_PYTHON),$(DETECTRON2_PYTHON),$(CURDIR)/$(VENV_D2)/bin/python)
# OpenMP threads of torch sleep while they wait: the engine needs the cores.
D2_ENV = env PYTHONPATH=$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH} OMP_WAIT_POLICY=PASSIVE
DEMO_ARGS ?=

.PHONY: demo test-detectron2 trainer

trainer: $(if $(DETECTRON2_PYTHON),,$(VENV_D2)/.made)
	@$(D2_PY) -c 'import detectron2, torch' || { \
	  echo "make: expected Detectron2 and torch in $(D2_PY)"; exit 1; }

# After .venv/, not beside it: what pip downloads is large.
$(VENV_D2)/.made: | $(VENV)/.deps
	@test -n "$(PYTHON310)" || { \
	  echo "make: expected CPython 3.10 (with venv) for .venv-d2/, found none."; \
	  echo "  PYTHON310=/path/to/python3.10 names one (pyenv, uv and conda can install it);"; \
	  echo "  DETECTRON2_PYTHON=/path/to/python names an environment that has Detectron2."; exit 1; }
	$(PYTHON310) -m venv $(VENV_D2)
	$(VENV_D2)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_D2)/bin/python -m pip install --quiet $(D2_TORCH) 'numpy<2' sal-detectron2==0.7.2 \
	  fvcore iopath opencv-python-headless shapely pytest
	$(VENV_D2)/bin/python -m pip install --quiet --no-deps lvis
	@touch $@

demo: install trainer ## train in Detectron2 on drawings, while an engine fills the bank
	$(D2_ENV) $(D2_PY) python/examples/detectron2_demo.py --engine-python $(PY) $(DEMO_ARGS)

test-detectron2: install trainer ## run the tests that need Detectron2
	$(D2_ENV) MOSAICBANK_ENGINE_PYTHON=$(PY) $(D2_PY) -m pytest tests/python/in_detectron2 $(PYTEST_ARGS)

# --- bench -----------------------------------------------------------------------------------

bench: install ## run the benchmarks; each prints ratios against a reference
	$(ENGINE_ENV) cargo bench --locked --features engine
	for script in $(filter-out benches/detectron2_%,$(wildcard benches/*.py)); do $(PY) $$script || exit 1; done

# --- lint ------------------------------------------------------------------------------------

lint: lint-rust lint-python ## check format, lints, types and stubs; compile the benchmarks

lint-rust: $(VENV)/.deps
	cargo fmt --check
	cargo clippy --locked --lib --features python -- -D warnings
	$(ENGINE_ENV) cargo clippy --locked --all-targets --features python,engine -- -D warnings

lint-python: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(ENGINE_ENV) $(PY) -m mypy.stubtest --mypy-config-file pyproject.toml mosaicbank._core mosaicbank._engine

format: $(VENV)/.deps ## format the Rust and the Python sources
	cargo fmt
	$(PY) -m ruff check --fix --select I .
	$(PY) -m ruff format .

clean: ## remove what was built, except the environments
	cargo clean
	rm -rf build dist out python/*.egg-info python/mosaicbank/*.so $(VENV)/.built
