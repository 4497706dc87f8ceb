# Everything runs in its own environment, $(VENV), which the targets make and renew by themselves.

SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

# the published data sets, where a folder of them lies beside the checkout; tests that need them are skipped otherwise
ifneq ($(wildcard ../shared/data),)
export FEDOPT_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help setup demo test test-slow check fmt clean bench-cpu bench-quick robustness robustness-ecg participation compression vertical similarity optimizers proto

help:  ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the environment, if it is absent or out of date

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fedopt needs Python 3.11 or newer, $(PYTHON) is not; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deploy,ecg,privacy,ray,secure,vfl]'
	@touch $@

demo: setup  ## run a small experiment and write its report
	$(BIN)/fedopt run configs/quickstart.toml --set run.out=runs/demo-$$(date +%Y%m%d-%H%M%S)

test: check  ## static checks, then all tests but the slow ones
	$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not slow'

test-slow: setup  ## the slow tests alone
	$(BIN)/python -m pytest -q -n $(WORKERS) -m slow

check: setup  ## lint, formatting, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench-cpu:  ## measure the speed tables against other simulators (about an hour), and write docs/performance.md
	@PYTHON=$(PYTHON) bench/venvs.sh
	bench/venvs/fedopt/bin/python -m bench.run

bench-quick:  ## the small tasks of the speed tables, with shorter repetitions (some minutes)
	@PYTHON=$(PYTHON) bench/venvs.sh
	bench/venvs/fedopt/bin/python -m bench.run --quick

fmt: setup  ## mend formatting and what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, caches and builds; runs are kept
	rm -rf $(VENV) build dist fedopt.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

robustness: setup  ## rules against attackers in the majority, on images (hours; it goes on where it stopped)
	for sweep in robustness-mnist robustness-mnist-beside; do \
		$(BIN)/fedopt sweep configs/$$sweep.toml --jobs 2 --cache runs/robustness-cells || exit 1; \
	done

robustness-ecg: setup  ## the same on heart beats (more than an hour; it goes on where it stopped)
	$(BIN)/fedopt sweep configs/robustness-ecg.toml --jobs 2 --cache runs/robustness-cells

participation: setup  ## head-counts against uploads, and FedBuff against FedAvg (hours; it goes on where it stopped)
	$(BIN)/python -m bench.participation --jobs 2

compression: setup  ## codecs: bytes, error and speed, and what they do to convergence (half an hour)
	$(BIN)/python -m bench.codecs
	$(BIN)/python -m bench.convergence

optimizers: setup  ## local optimizers over small tasks (about two hours; it goes on where it stopped)
	$(BIN)/python -m bench.optimizers --jobs 2

vertical: setup  ## vertical methods: bytes to a gap, networks, speed (hours; it goes on where it stopped)
	$(BIN)/python -m bench.vertical --jobs 2
	$(BIN)/python -m bench.vertical.nets
	$(BIN)/python -m bench.vertical.speed
	$(BIN)/python -m bench.vertical.speed --link

similarity: setup  ## methods under data similarity: gap against rounds, networks, the link (hours; it goes on where it stopped)
	$(BIN)/python -m bench.similarity
	$(BIN)/python -m bench.similarity.nets
	$(BIN)/python -m bench.similarity.link

proto: setup  ## write the code of the wire format again from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(VENV) --pyi_out=$(VENV) \
		fedopt/v1/payload.proto fedopt/v1/link.proto fedopt/v1/monitor.proto
	mv $(VENV)/fedopt/v1/*_pb2.py $(VENV)/fedopt/v1/*_pb2.pyi fedopt/wire/
