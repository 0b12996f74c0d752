# mosaicbank: the few commands of its development. `make help` lists them.
# Everything installs into .venv/; nothing else on the system is touched.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The release that tch 0.24 is made for. A CPU-only build of it does as well.
TORCH ?= torch==2.11.0
PYTEST_ARGS ?=

VENV := .venv
PY := $(CURDIR)/$(VENV)/bin/python
RUST_SOURCES := Cargo.toml Cargo.lock setup.py $(shell find src -type f)

# Where cargo finds libtorch: in .venv's torch. The same variables with the same values as
# setup.py sets, so that libtorch's C++ shim is compiled once per profile.
TORCH_DIR = $(shell $(PY) -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])')
ENGINE_ENV = env -u LIBTORCH_USE_PYTORCH LIBTORCH=$(TORCH_DIR) LIBTORCH_INCLUDE=$(TORCH_DIR) \
	LIBTORCH_LIB=$(TORCH_DIR) LIBTORCH_CXX11_ABI=1 \
	LD_LIBRARY_PATH=$(TORCH_DIR)/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}
export PYO3_PYTHON := $(PY)

.DEFAULT_GOAL := help
.PHONY: help install test test-rust test-python bench lint lint-rust lint-python format clean

help: ## list these commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

# --- install ---------------------------------------------------------------------------------

install: $(VENV)/.built ## make .venv/ with torch, the tools, and both extension modules

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

test: test-rust test-python ## run every test: the crate without and with libtorch, then Python

test-rust: $(VENV)/.deps
	cargo test --locked
	$(ENGINE_ENV) OMP_WAIT_POLICY=PASSIVE cargo test --locked --features engine --lib --test 'engine*'

test-python: install
	$(PY) -m pytest $(PYTEST_ARGS)

# --- Detectron2 ------------------------------------------------------------------------------

# The trainer has an environment of its own, as users have. A Python with Detectron2 may be given
# (DETECTRON2_PYTHON=...); else .venv-d2/ is made, with a third-party build of Detectron2 that
# the package index has for CPython 3.10.
DETECTRON2_PYTHON ?=
VENV_D2 := .venv-d2
D2_TORCH ?= torch==2.3.1 torchvision==0.18.1
PYTHON310 ?= $(shell for p in python3.10 $(HOME)/.pyenv/versions/3.10.*/bin/python3.10; do \
	$$p -c 'import ensurepip' 2>/dev/null && echo $$p && break; done)
D2_PY = $(if $(DETECTRON2_PYTHON),$(DETECTRON2_PYTHON),$(CURDIR)/$(VENV_D2)/bin/python)
# The libraries of torch wait for work without turning in circles: the engine needs the cores.
D2_ENV = env PYTHONPATH=$(CURDIR)/python$${PYTHONPATH:+:$$PYTHONPATH} OMP_WAIT_POLICY=PASSIVE
DEMO_ARGS ?=

.PHONY: demo test-detectron2 trainer

trainer: $(if $(DETECTRON2_PYTHON),,$(VENV_D2)/.made)
	@$(D2_PY) -c 'import detectron2, torch' || { \
	  echo "make: expected Detectron2 and torch in $(D2_PY)"; exit 1; }

$(VENV_D2)/.made:
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

demo: install trainer ## train in Detectron2 on made-up data, with mosaics made meanwhile
	$(D2_ENV) $(D2_PY) python/examples/detectron2_demo.py --engine-python $(PY) $(DEMO_ARGS)

test-detectron2: install trainer
	$(D2_ENV) MOSAICBANK_ENGINE_PYTHON=$(PY) $(D2_PY) -m pytest tests/python/in_detectron2 $(PYTEST_ARGS)

# --- bench -----------------------------------------------------------------------------------

bench: install ## run the benchmarks, each of which prints ratios against a reference
	$(ENGINE_ENV) cargo bench --locked --features engine
	for script in $(filter-out benches/detectron2_%,$(wildcard benches/*.py)); do $(PY) $$script || exit 1; done

# --- lint ------------------------------------------------------------------------------------

lint: lint-rust lint-python ## check format, lints, types, stubs, and that the benchmarks build

lint-rust: $(VENV)/.deps
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --lib --features python -- -D warnings
	$(ENGINE_ENV) cargo clippy --locked --all-targets --features python,engine -- -D warnings
	$(ENGINE_ENV) cargo build --locked --benches --features engine

lint-python: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(ENGINE_ENV) $(PY) -m mypy.stubtest --mypy-config-file pyproject.toml mosaicbank._core mosaicbank._engine

format: $(VENV)/.deps ## format the Rust and the Python sources
	cargo fmt
	$(PY) -m ruff check --fix --select I .
	$(PY) -m ruff format .

clean: ## remove what was built, but not .venv/
	cargo clean
	rm -rf build dist out python/*.egg-info python/mosaicbank/*.so $(VENV)/.built
