# SchemaHub: everything a developer runs. `make help` lists it.
# Needs python3 >= 3.11 (with venv), make, git and a package index; Node.js is optional (one ASL check uses it).

PYTHON ?= python3
VENV := .venv
VENV_AWS := .venv-aws
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_PIN := $(shell sed -n 's/^uv==/uv==/p' requirements.in)
ASL_VALIDATOR := asl-validator@4.0.0
WORKERS ?= 2
# Of push-image and take-over: the deployed stack, its stage, and the image's tag.
STACK = schemahub
STAGE = dev
TAG = latest

export SAM_CLI_TELEMETRY := 0
export PYTHONDONTWRITEBYTECODE :=
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup run demo test test-crash test-matrix test-load test-exchanges test-backfill lint fmt retries bench build push-image take-over lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp $(VENV_AWS)/.stamp ## Create the two environments (done by every other target when needed)

run: ## Three products through the whole pipeline on this machine, to a chart and a proof (FULL=1: see demo)
	@$(MAKE) --no-print-directory -j2 setup
	@$(BIN)/python -m local.demo $(if $(FULL),--full)

demo: ## The proof run: fourteen products, half a million trades
	@$(MAKE) --no-print-directory run FULL=1

test: setup node_modules/.stamp ## All tests (CI runs this): fast ones in parallel, then the deployed stack, then with IAM enforced
	$(BIN)/pytest -n $(WORKERS) -m "not long" $(wildcard tests/unit tests/property tests/crash tests/simulation tests/deploy)
	$(BIN)/pytest tests/integration -m "not end_to_end and not long"
	AUTH=true $(BIN)/pytest tests/integration -m "end_to_end and not long"

test-crash: test-matrix test-load ## The whole proof: the crash matrix at every side effect, long schedules, the load on one bucket

# All of their crashes take minutes; some of each are in `make test`.
HISTORY_CRASHES := $(patsubst %,tests/crash/test_%_crashes.py,backfill archive correction)

test-matrix: setup
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m long --timeout 1500 $(wildcard tests/unit tests/property tests/crash tests/simulation) $(addprefix --ignore=,$(HISTORY_CRASHES))

test-load: setup
	$(BIN)/pytest -s -m long --timeout 1500 tests/integration/test_contention.py

test-exchanges: setup ## Every exchange, 20,000 trades each, through the deployed stack at its true limits (12 minutes)
	$(BIN)/pytest --timeout 1500 tests/integration/test_exchanges.py

test-backfill: setup ## History: its crashes, 5,000,000 trades by tasks that are killed, an archive's month of 21 M rows (half an hour)
	$(BIN)/pytest -n $(WORKERS) -m long --timeout 1500 $(HISTORY_CRASHES)
	$(BIN)/pytest -s -m long --timeout 3600 tests/integration/test_heavy_backfill.py

lint: setup ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

retries: setup ## Write the Retry blocks of statemachines/*.asl.json from their table, statemachines/retries.py
	$(BIN)/python statemachines/retries.py

bench: setup ## Measure; writes what docs quote
	$(BIN)/python -m bench

build: setup ## sam build for the cloud (arm64); prints each function's size and fails past 240 MiB
	$(BIN)/sam build --cached
	$(BIN)/python -m local.layer_sizes

push-image: ## Build the image of the backfill task (arm64) and push it to a stack's repository (STACK, TAG)
	@sh functions/backfill/push_image.sh "$(STACK)" "$(TAG)"

take-over: setup ## Give the bucket and the tables that a deleted stack kept to a new one (STACK, STAGE)
	@$(BIN)/python -m local.take_over "$(STACK)" "$(STAGE)"

lock: $(VENV)/.stamp ## Resolve requirements*.in again into the lock files
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q \
		requirements.in -o requirements.lock
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q \
		requirements-aws.in -o requirements-aws.lock
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-deps -q \
		requirements-oracle.in -o requirements-oracle.lock
	for layer in core arrow duckdb iceberg; do $(MAKE) -C layers/$$layer lock; done
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -q \
		--constraint requirements.lock functions/backfill/requirements.in -o functions/backfill/requirements.lock

clean: ## Stop the local stack; remove its data, builds and caches (keeps the environments)
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m schemahub_cli local down; fi
	rm -rf .schemahub .aws-sam build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis node_modules
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

# --- environments: a stamp each, so that a second run costs nothing -------------------------------------------

$(VENV)/bin/uv: requirements.in
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SchemaHub needs Python 3.11 or newer: set PYTHON=/path/to/python3")'
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "Python's venv module is missing: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@# pip serves only to bring uv: the one beside PYTHON will do, and unpacking another takes five seconds.
	[ -x $(BIN)/python ] || $(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install -q --disable-pip-version-check "$(UV_PIN)" 2>/dev/null \
		|| { $(BIN)/python -m ensurepip >/dev/null && $(BIN)/python -m pip install -q --disable-pip-version-check "$(UV_PIN)"; }
	@touch $@

$(VENV)/.stamp: $(VENV)/bin/uv requirements.lock requirements-oracle.lock pyproject.toml
	$(UV) pip sync -q --python $(BIN)/python requirements.lock requirements-oracle.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(VENV_AWS)/.stamp: $(VENV)/bin/uv requirements-aws.lock
	[ -x $(VENV_AWS)/bin/python ] || $(UV) venv -q --python $(BIN)/python $(VENV_AWS)
	$(UV) pip sync -q --python $(VENV_AWS)/bin/python requirements-aws.lock
	@touch $@

# The ASL validator is a Node.js program; without npm its test is skipped and says so.
node_modules/.stamp:
	@mkdir -p node_modules
	@if command -v npm >/dev/null; then \
		npm install --no-save --no-package-lock --no-audit --no-fund --loglevel=error $(ASL_VALIDATOR) \
			|| echo "npm could not install $(ASL_VALIDATOR): the ASL test is skipped" >&2; \
	else echo "no npm: the ASL test is skipped" >&2; fi
	@touch $@
