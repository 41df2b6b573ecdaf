# Every target works in a fresh clone with Python 3.11+ alone; `make` lists them.

PYTHON ?= python3
TARGET ?= embedded
# Tests of one file, and those that share a deployment, stay on one worker.
PYTEST := -m pytest -n 2 --dist loadgroup
PY := .venv/bin/python

# Byte code makes later starts three times as fast, and lies in ignored folders only.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lint test test-fast e2e check up down status demo synth openapi lock bench chaos

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## install everything into .venv and .local (nothing outside this folder)
	@$(PYTHON) infra/local/install.py

demo: setup ## see it work: start, deploy, export 336,776 flights, compare, stop
	@$(PY) -m infra.local demo

up: setup ## start the embedded target and leave it running
	@$(PY) -m infra.local up

down: setup ## stop the embedded target and remove its data
	@$(PY) -m infra.local down

status: setup ## the embedded target as one JSON object (make -s status)
	@$(PY) -m infra.local status

lint: setup ## style, types, import rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

test: lint ## lint, then all tests
	$(PY) $(PYTEST)

test-fast: setup ## all tests but the end-to-end ones
	$(PY) $(PYTEST) -m "not e2e"

e2e: setup ## the end-to-end tests alone
	$(PY) -m pytest -m e2e

check: test ## what CI runs

synth: setup ## CloudFormation templates into cdk.out: make synth TARGET=aws|localstack|embedded
	$(PY) -m infra.local.cdk synth --quiet --context target=$(TARGET)

openapi: setup ## write docs/openapi.json anew
	@$(PY) -m tests.helpers.openapi

bench: setup ## measure: make bench, make bench BENCH="export submit" ROWS=400000 ROUNDS=3
	$(PY) -m tests.benchmarks $(BENCH) $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS))

chaos: setup ## break it on purpose (tests/chaos)
	$(PY) -m tests.chaos

UV_COMPILE = .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	--annotation-style line --python-version 3.11 --custom-compile-command "make lock"

lock: setup ## write the hash locks anew; UPGRADE=--upgrade takes newer versions
	$(UV_COMPILE) $(UPGRADE) pyproject.toml --extra client --group dev -o requirements-dev.txt
	$(UV_COMPILE) $(UPGRADE) pyproject.toml --constraints requirements-dev.txt -o layers/dependencies/requirements.txt
	$(UV_COMPILE) $(UPGRADE) --group emulator -o infra/local/requirements.txt
	$(UV_COMPILE) $(UPGRADE) --group bench -o tests/benchmarks/requirements.txt
	$(UV_COMPILE) $(UPGRADE) --group flights --no-deps -o infra/local/sample-data.txt
