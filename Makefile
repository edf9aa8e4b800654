# Two commands do everything: `make up` (the main job, embedded defaults) and `make test` (all tests).
# PyTorch: by default the package index decides which build comes. To choose, set TORCH_INDEX_URL to the index of PyTorch's CPU or
# CUDA builds (see PyTorch's "Get Started" page), for example:  make up TORCH_INDEX_URL=<index of the CPU builds>

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TORCH_INDEX_URL ?=
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS   ?=
TEST_PROCESSES ?= 2

.PHONY: up down demo test test-peers soak check format bench install install-dev clean

up: install            ## start everything, with gentle sample traffic
	$(BIN)/phaseline up --traffic gentle $(ARGS)

down:                  ## drain and stop what `make up` or `make demo` started
	$(BIN)/phaseline down
	PHASELINE_RUN_DIR=data/run/demo $(BIN)/phaseline down

demo: install          ## 48 paced H100 workers (simulated), a 70B cost model, a busy day compressed
	PHASELINE_RUN_DIR=data/run/demo PHASELINE_FLEET_ID=demo PHASELINE_PROFILE=production \
	$(BIN)/phaseline up --kind paced --workers 48 --prefill 8 --traffic day $(ARGS)

test: install-dev      ## every test: units, real processes, PostgreSQL, Chromium
	sh tests/system_packages.sh
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) $(ARGS)

test-peers: install-dev  ## real Dynamo, sglang-router, Ray Serve, Prometheus, a Kubernetes API server and a vLLM pair, each in its own environment
	-PYTHONPATH=. $(BIN)/python bench/peers.py --setup $(ARGS)  # what could not be set up fails below
	PYTHONPATH=. $(BIN)/python bench/peers.py $(ARGS)

soak: install-dev      ## half an hour of random faults and actions: make soak ARGS="--minutes 60 --seed 7"
	$(BIN)/python -m tests.faults.soak $(ARGS)

check: install-dev     ## formatting, lint, import rules, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install-dev     ## every benchmark that ships; each prints a table and its conditions
	$(BIN)/phaseline bench all $(ARGS)

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (2.3 GB on the CPU build)"
	$(PIP) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) torch
	$(PIP) --editable '.[model]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --editable '.[model,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
