# Every target works from a clean clone: what needs the virtual environment makes it first.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Which build of torch: a requirement that keeps the pinned version (torch==2.13.0+cpu) or the path of a wheel.
TORCH ?= torch==2.13.0
# More arguments for pip, such as another package index for the torch build.
PIP_ARGS ?=
# Worker processes (empty: bench takes one per core; the tests take 2).
JOBS ?=
# How often a unit is killed, and how often two processes meet on one, in test-faults.
KILLS ?= 50
PAIRS ?= 20
# Seconds of each fuzz test, in test-nightly and test-faults.
FUZZ_SECONDS ?= 90
export FUZZ_SECONDS
# Real data sets in the hub's layout, for test-data.
ADALORA_BENCH_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data))

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
BENCH := $(BIN)/bench
# A folder of its own, outside git: records that a checkout brings along must not make the demo a no-op.
DEMO_ARGS := results_dir=results/demo
RUN_ARGS := $(if $(JOBS),jobs=$(JOBS))
QUIET_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE HF_HUB_OFFLINE=1
PYTEST := $(BIN)/python -m pytest
FIGURES := build/fault-figures.jsonl

.PHONY: help install check docs demo test test-nightly test-data test-faults lint format tables claims figures report clean

help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  Variables: PYTHON, TORCH (torch build, e.g. TORCH=torch==2.13.0+cpu), PIP_ARGS, JOBS, ADALORA_BENCH_DATA'

install: $(STAMP) ## Make .venv with the pinned versions (once; again when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo 'No python3 found; name one: make install PYTHON=/path/to/python3.11'; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name one: make install PYTHON=/path/to/python3.11'; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo 'Installing the pinned versions into $(VENV): a few minutes the first time.'
	$(PIP) install --quiet $(PIP_ARGS) "$(TORCH)" -c constraints.txt
	$(PIP) install --quiet $(PIP_ARGS) -e '.[dev]' -c constraints.txt
	@touch $@

demo: install ## IncreLoRA against LoRA on film reviews, 5 seeds each, from embedded assets: about 4 minutes on 2 cores
	$(BENCH) fetch task=film_reviews scale=cpu
	$(BENCH) run method=increlora task=film_reviews scale=cpu $(DEMO_ARGS) $(RUN_ARGS)
	$(BENCH) run method=lora method.rank=2 task=film_reviews scale=cpu $(DEMO_ARGS) $(RUN_ARGS)
	$(BENCH) tables --compare $(DEMO_ARGS) task=film_reviews

test: install ## The offline tests of a pull request, without real data (about 10 minutes)
	env -u ADALORA_BENCH_DATA $(QUIET_ENV) $(PYTEST) -n $(or $(JOBS),2) --dist loadgroup

test-nightly: install ## Tests that are complete where make test takes a part: the trace of every method
	env -u ADALORA_BENCH_DATA $(QUIET_ENV) $(PYTEST) -n $(or $(JOBS),2) --dist loadgroup -m nightly

test-data: install ## The tests that need real data (ADALORA_BENCH_DATA, default ../shared/data)
	@test -d "$(ADALORA_BENCH_DATA)" || { echo 'make test-data needs real data sets: set ADALORA_BENCH_DATA to a folder in the layout of the hub (nyu-mll/glue/rte/...); received "$(ADALORA_BENCH_DATA)".'; exit 1; }
	$(BENCH) fetch task=film_reviews scale=cpu
	ADALORA_BENCH_DATA="$(ADALORA_BENCH_DATA)" $(QUIET_ENV) $(PYTEST) -n $(or $(JOBS),2) --dist loadgroup -m 'data and not slow'

test-faults: install ## Every fault, many times (KILLS=50 PAIRS=20), and docs/reliability.md from the counts: 20 minutes
	mkdir -p $(dir $(FIGURES)) && rm -f $(FIGURES)
	status=0; env -u ADALORA_BENCH_DATA $(QUIET_ENV) $(PYTEST) -n $(or $(JOBS),2) --dist loadgroup -m fault \
		--kills $(KILLS) --pairs $(PAIRS) --figures $(FIGURES) || status=$$?; \
		$(BIN)/python scripts/reliability.py $(FIGURES) docs/reliability.md; exit $$status

lint: install ## ruff (lint and format), mypy, the direction of imports, and sizes of tracked files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/tracked_sizes.py

format: install ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: install ## Write every table from the records; never trains
	$(BENCH) tables

claims: install ## Judge the papers' claims by the records: results/claims.md
	$(BENCH) claims

figures: install ## Draw every figure that the records allow: results/figures
	$(BENCH) figures

report: tables claims figures ## Everything that is made from the records, and all of it on one page: results/report.html
	$(BENCH) report

docs: install ## The documentation as a site: build/docs/index.html
	$(PIP) install --quiet $(PIP_ARGS) -e '.[docs]' -c constraints.txt
	$(BIN)/mkdocs build --quiet

check: lint ## For the inner loop, under a minute: lint, types, unit tests
	env -u ADALORA_BENCH_DATA $(QUIET_ENV) $(PYTEST) -q -n $(or $(JOBS),2) --dist loadgroup tests/unit

clean: ## Remove .venv and caches; records and tables stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
