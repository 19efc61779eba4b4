# One command each, on a fresh machine: `make run`, `make test`. Everything lives in this folder (.venv, store,
# .roundhouse); nothing but packages is downloaded, all at the versions of requirements.lock.

SHELL := /bin/sh
PYTHON ?= python3.11
CONFIG ?= configs/tiny.yaml
BIN := .venv/bin
TORCH := $(shell sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
# The stamp's name holds what was installed and where; any change of it installs again.
STAMP := .venv/.installed-$(shell { cat requirements.lock pyproject.toml 2>/dev/null; pwd; } | sha256sum | cut -c1-16)
ROOMS := flows tasks storage configs engine methods world report cli tests benchmarks

.PHONY: help run test check slow-short up down s3 doctor world-check lock clean install

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

run: $(STAMP) ## run the main job (CONFIG=configs/tiny.yaml) to its report
	@$(BIN)/roundhouse run $(CONFIG)

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest -q

check: $(STAMP) ## formatting, lint, types
	@$(BIN)/ruff format --check $(ROOMS)
	@$(BIN)/ruff check $(ROOMS)
	@$(BIN)/mypy

slow-short: $(STAMP) ## the short version of the slow checks: kills, faults, fuzzing
	@$(BIN)/python -m pytest -q -m slow_short

up: $(STAMP) ## start Prefect server and worker (S3=1: an S3 server too)
	@$(BIN)/roundhouse up $(if $(S3),--s3)

down: ## stop what `make up` started
	@if [ -x $(BIN)/roundhouse ]; then $(BIN)/roundhouse down; fi

s3: $(STAMP) ## start a real S3 server on loopback
	@$(BIN)/roundhouse s3

doctor: $(STAMP) ## check this machine
	@$(BIN)/roundhouse doctor

world-check: $(STAMP) ## prove the properties of the built-in world
	@$(BIN)/python -m benchmarks.world_check

install: $(STAMP) ## only install

# Two steps: the lock first, every package with its hash and nothing resolved; then torch, whose build (CPU or CUDA)
# is the package index's choice, so it has a version but no hash here. Then this project, editable.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "error: $(PYTHON) is not Python 3.11: install it, or give its path with PYTHON=..." >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys; sys.exit(os.path.realpath(sys.prefix) != os.path.realpath(".venv"))' 2>/dev/null || \
	  $(PYTHON) -m venv --clear .venv
	@rm -f .venv/.installed-*
	@echo "installing $$(grep -c '^[a-z].*==' requirements.lock) locked packages and $(TORCH) into .venv: minutes, once"
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq $(TORCH)
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

# All hashes of every file of a version, so that the lock serves any platform that has wheels. torch and what only its
# CUDA build needs are left out (see above).
lock: ## make requirements.lock anew from pyproject.toml (needs the network)
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install -q uv
	.venv-lock/bin/uv pip compile pyproject.toml --extra dev --python-version 3.11 --generate-hashes --no-header --no-config -q -o .venv-lock/all
	@{ echo "# Made by \`make lock\` from pyproject.toml. torch is installed beside it: see the Makefile."; \
	  awk '/^[a-z0-9]/ { keep = !/^(torch|triton|nvidia-|cuda-)/ } keep' .venv-lock/all; } > requirements.lock
	@rm -rf .venv-lock; grep -c == requirements.lock

clean: ## remove what was built here; the store and .roundhouse stay
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
