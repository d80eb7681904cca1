# Sets everything up by itself: needs Python 3 with pip, nothing else.
# JAXKD_DATA names the folder of real data sets; what needs it is skipped without.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := $(UV) run --no-sync
DEMO := runs/demo

ifneq ($(wildcard ../shared/data),)
export JAXKD_DATA ?= $(abspath ../shared/data)
endif

# libtpu, which compiles for TPUs, would have JAX look for one here first.
ifeq ($(wildcard /dev/accel* /dev/vfio/* /dev/nvidia*),)
export JAX_PLATFORMS ?= cpu
endif

# Python keeps what it compiles: JAX's files anew are seconds of every process.
unexport PYTHONDONTWRITEBYTECODE

# The contracts, a mesh, checkpoints and kernels with the oldest JAX that is supported.
OLDEST := --with jax==0.11.2
OLDEST_TESTS := tests/programs/test_update.py tests/sharding/test_mesh.py \
  tests/training/test_checkpoint.py tests/kernels/test_nm_matmul.py

.PHONY: demo test test-all test-slow test-oldest test-wheel check docs bench setup clean

setup: .venv/.ready

.tools/bin/uv:
	python3 -m pip install --quiet --target .tools uv

.venv/.ready: pyproject.toml uv.lock $(if $(shell command -v uv 2>/dev/null),,.tools/bin/uv)
	$(UV) sync --locked --extra dev --extra docs --extra bench --extra aot
	touch $@

demo: setup  ## distil students on real digits, print the table, write plots
	rm -rf $(DEMO)
	$(RUN) jaxkd run baselines --preset demo --seeds 3 --folder $(DEMO)

test: setup  ## the tests, but for the slow ones
	$(RUN) pytest -n 2 --dist loadfile -m "not slow"

test-all: setup  ## both, in one session
	$(RUN) pytest -n 2 --dist loadfile

test-slow: setup  ## whole small runs, several processes, programs that compile slowly
	$(RUN) pytest -n 2 --dist loadfile -m slow

test-oldest: setup  ## a choice of tests with the oldest JAX that is supported
	$(RUN) $(OLDEST) pytest -n 2 --dist loadfile -m "not slow" $(OLDEST_TESTS)

test-wheel: setup  ## the package as others install it, far from the repository
	rm -rf dist
	$(UV) build --quiet --wheel --out-dir dist
	cd dist && env -u PYTHONPATH $(if $(filter .%,$(UV)),../)$(UV) run --quiet \
	  --no-project --isolated --python ../.venv/bin/python --with ./*.whl \
	  jaxkd show pld | grep "results  none yet"

check: setup  ## format, lint, types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) basedpyright

docs: setup  ## the site, with its notebooks executed, in docs/_build/html
	$(RUN) sphinx-build -W --keep-going -b html docs docs/_build/html

bench: setup  ## speed and memory, as ratios measured side by side
	$(RUN) python experiments/benchmarks/train_step.py

clean:
	rm -rf .venv .tools .cache runs docs/_build docs/jupyter_execute
