# `make up` and `make test` are all a newcomer needs. Every step installs what it lacks, once.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; done; echo python3)
# Where PyTorch's CPU build comes from when none of pip's configured indexes has it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Arguments for `sluice up`: make up ARGS="--replicas 2 --with-embeddings"
ARGS ?=
UV = uv==0.13.9

BIN := .venv/bin
ENGINE := .venv-engine/bin/python
MODELS := .sluice/models
NODE := tests/e2e/node
# A test that hangs ends the run, and shows where it hangs.
UNIT := $(BIN)/pytest tests --ignore=tests/e2e --ignore=tests/deploy \
	-o faulthandler_timeout=120 -o faulthandler_exit_on_timeout=true
E2E := $(BIN)/pytest tests/e2e -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

export TORCH_INDEX
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install engine model up lint type unit cover redis e2e test-deploy test bench study chaos loadtest leak lock clean retrieval-quality retrieval-study leak limits-study overload
.DEFAULT_GOAL := help

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.sluice ## the gateway: .venv/bin/sluice, the path of a call compiled
engine: .venv-engine/.installed ## vLLM: .venv-engine
model: $(MODELS)/.ready ## the demo models

up: install engine ## a model, a worker and the gateway on http://127.0.0.1:8000
	@exec $(BIN)/sluice up $(ARGS)

lint: .venv/.dev ## ruff: rules and format
	@echo "== lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: .venv/.dev ## mypy, strict
	@echo "== type"
	@$(BIN)/mypy

unit: .venv/.dev ## the tests that need nothing but Python
	@echo "== unit"
	@$(UNIT) --numprocesses 2

cover: .venv/.dev ## the same, and 95 % of all branches
	@echo "== unit, with branch coverage"
	@$(UNIT) --numprocesses 2 --cov --cov-report=term --cov-fail-under=95

redis: ## the server that limits are tested on: Debian's, where it may be installed
	@command -v redis-server valkey-server >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get install -y --no-install-recommends redis-server >/dev/null 2>&1; } \
		|| echo "== NO redis-server HERE, and it cannot be installed: the tests of limits in Redis will be SKIPPED"

e2e: .venv/.dev install engine model redis $(NODE)/.installed ## real vLLM, real SDKs
	@echo "== e2e"
	@$(E2E)

test-deploy: .venv/.dev install ## the chart, the alerts, the dashboards and the image, with their own tools
	@echo "== deploy"
	@$(PYTHON) deploy/locks/tools.py
	@$(BIN)/pytest tests/deploy -rs --numprocesses 2 --dist loadfile

test: ## everything: lint, type, unit with coverage, e2e, deploy
	@for step in lint type cover e2e test-deploy; do $(MAKE) --no-print-directory $$step \
		|| { echo "== FAILED at: make $$step (what comes after it was not run)"; exit 1; }; done
	@echo "== all passed"

bench: .venv/.dev install ## what a request and an event cost, beside the reference
	@$(BIN)/python -m loadtest.bench $(ARGS)

study: .venv/.dev install ## how well calls are routed, on the trace in SLUICE_TRACES; ARGS=--short: on made-up chats
	@$(BIN)/python -m loadtest.study $(ARGS)

chaos: .venv/.dev install ## three minutes of killed, restarted, refusing and lying workers, and what clients notice of it
	@$(BIN)/python -m loadtest.chaos $(ARGS)

loadtest: .venv/.dev install ## two minutes of locust against a simulated fleet: a table, a page with plots, SLOs
	@$(BIN)/python -m loadtest $(ARGS)

retrieval-quality: .venv/.dev install ## nDCG@10 of search, on collections named by SLUICE_RETRIEVAL_DATA
	@$(BIN)/python -m tests.quality.retrieval_quality

retrieval-study: .venv/.dev install ## 100,000 passages: ingestion, kill -9, latency, streams beside searches
	@$(BIN)/python -m loadtest.retrieval_study $(ARGS)

limits-study: .venv/.dev install redis ## what limits cost; 100,000 calls through two gateways on one Redis, which is killed; a gateway too
	@$(BIN)/python -m tests.quality.limits_cost
	@$(BIN)/python -m loadtest.limits_study $(ARGS)

leak: .venv/.dev install ## 10,000 attempts to read another tenant's passages
	@SLUICE_LEAK_ATTEMPTS=10000 $(BIN)/pytest tests/unit/api/test_retrieval_isolation.py -q -s

overload: .venv/.dev install ## fairness and three times the load, with one replica and with two: a quarter of an hour
	@$(BIN)/python -m loadtest.overload $(ARGS)

lock: .venv-lock/bin/uv ## resolve the dependencies anew: deploy/locks/*.txt
	@set -e; export UV_CUSTOM_COMPILE_COMMAND="make lock"; cd deploy/locks; \
	compile() { echo "== $$1"; out=$$1; shift; ../../$< pip compile "$$@" --output-file $$out --quiet --upgrade \
		--universal --python-version 3.11 --generate-hashes --no-annotate; }; \
	compile gateway.txt ../../pyproject.toml build.in; \
	compile dev.txt ../../pyproject.toml build.in --group ../../pyproject.toml:dev --constraints gateway.txt; \
	compile engine-cpu.txt engine-cpu.in --excludes engine-cpu.excludes; \
	compile engine-gpu.txt engine-gpu.in; \
	compile tools.txt tools.in; \
	compile checkov.txt checkov.in

clean: ## remove all that make has created, models and keys included
	rm -rf build .venv .venv-engine .venv-lock .sluice .tools $(NODE)/node_modules $(NODE)/.installed .coverage* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis service/sluice.egg-info

# Stamps: a file for what is installed, older than the lock it was installed from when that has changed.

.venv/.installed: deploy/locks/gateway.txt deploy/locks/install.py pyproject.toml
	@$(PYTHON) deploy/locks/install.py gateway
	@touch $@

# Tests of the code itself and the checkers read service/; what is run, is run as users run it: built and installed.
.venv/.sluice: .venv/.installed setup.py $(shell find service -type f -not -name '*.pyc' -not -path '*.egg-info/*')
	@$(PYTHON) deploy/locks/install.py sluice
	@touch $@

.venv/.dev: .venv/.installed deploy/locks/dev.txt
	@$(PYTHON) deploy/locks/install.py dev
	@touch $@

.venv-engine/.installed: deploy/locks/engine-cpu.txt deploy/locks/engine-gpu.txt deploy/locks/torch-cpu.txt deploy/locks/install.py
	@$(PYTHON) deploy/locks/install.py engine
	@touch $@

.venv-lock/bin/uv: Makefile
	@$(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/pip install --quiet $(UV)

$(MODELS)/.ready: service/sluice/engines/demo_model.py service/sluice/engines/convert_gguf.py | .venv/.sluice .venv-engine/.installed
	@$(BIN)/python -m sluice.engines.demo_model --engine-python $(ENGINE) --folder $(MODELS)
	@touch $@

$(NODE)/.installed: $(wildcard $(NODE)/package-lock.json)
	@mkdir -p $(NODE)
	@if ! command -v npm >/dev/null; then \
		echo "== NO NODE.JS HERE: the tests of the openai and Vercel AI packages for Node will be SKIPPED"; \
	elif [ -f $(NODE)/package-lock.json ]; then cd $(NODE) && npm ci --no-audit --no-fund && touch .installed; fi
