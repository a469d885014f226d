# Commands for working on secagg. `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup pyfhel demo test lint format bench bench-check report docs tutorial sizes fuzz chaos proto clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
KERNELS := $(shell find secagg_ext -name '*.pyx' -o -name '*.pxd' -o -name '*.h')
PROTO := secagg/integrations/grpc/secagg.proto

# The first of these that runs; a name on PATH may be a shim without a Python behind it.
PYTHON ?= $(shell for name in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$name; break; }; done)

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## make .venv with everything; the others call it

demo: setup ## three sites train a network on a brain MRI, encrypted and raw
	$(BIN)/secagg demo --sites 3 --rounds 4

test: setup ## run the whole suite, a process for each core
	$(BIN)/python -m pytest -n logical --dist worksteal

lint: setup ## check style, types and imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: setup ## format the code, mend what can be mended
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: setup ## measure sizes, times and memory
	$(BIN)/python -m pytest benchmarks -v --benchmark-columns=median,iqr,rounds --benchmark-autosave

# A commit to compare with, and how long both take turns; a line goes to the history with GATE="--record".
BASE ?= origin/main
GATE_SECONDS ?= 240
bench-check: setup ## fail if this checkout is slower, or sends more, than BASE (origin/main)
	$(BIN)/python benchmarks/gate $(BASE) --seconds $(GATE_SECONDS) $(GATE)

report: setup ## the page in runs/report, and the numbers and pictures of README.md and docs/, from benchmarks/results
	$(BIN)/secagg bench report benchmarks/results --out runs/report
	$(BIN)/python benchmarks/docs.py

docs: setup ## build the documentation site in site/html, of README.md, docs/ and the docstrings
	$(BIN)/python -m sphinx -q -E -W -c docs -d site/doctrees . site/html

tutorial: setup ## run docs/tutorial.ipynb, some minutes, and keep its outputs
	$(BIN)/python tools/run_tutorial.py

sizes: setup ## make benchmarks/sizes.csv anew, which the suite holds exactly
	$(BIN)/python benchmarks/sizes.py

# What breaks it is kept in .fuzz; what it has reached is kept by tests/fuzz/fuzz_keep.py.
FUZZ_SECONDS ?= 600
fuzz: setup ## fuzz the parsers and the server's calls, ten minutes each
	@$(PIP) install -r requirements/fuzz.txt
	@mkdir -p .fuzz/parsers .fuzz/handlers
	$(BIN)/python tests/fuzz/fuzz_update.py -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ .fuzz/parsers tests/fuzz/corpus/parsers
	$(BIN)/python tests/fuzz/fuzz_server.py -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ .fuzz/handlers tests/fuzz/corpus/handlers

chaos: setup ## kill servers and sites, spoil connections, look for secrets: an hour; CHAOS_SEED=... repeats one
	$(BIN)/python -m pytest tests/chaos -m long -v

proto: setup ## generate the gRPC stubs anew
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

pyfhel: $(VENV)/packages ## build and install Pyfhel again, if set-up could not
	@$(BIN)/python tools/install_pyfhel.py

clean: ## remove what builds and tests leave, .venv excepted
	rm -rf build dist site *.egg-info .benchmarks .fuzz .hypothesis .mypy_cache .pytest_cache .ruff_cache $(VENV)/installed
	find secagg_ext \( -name '*.so' -o -name '*.c' \) -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Third-party packages. CI fails without Pyfhel; elsewhere set-up goes on and says what is missing.
$(VENV)/packages: $(wildcard requirements/*.txt) $(wildcard tools/*)
	@test -n "$(PYTHON)" || { echo "[setup] no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "[setup] making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[setup] installing PyTorch, some minutes"
	@$(PIP) install -r requirements/torch.txt
	@echo "[setup] installing the other packages, a minute or two"
	@$(PIP) install -r requirements/dev.txt
	@$(BIN)/python tools/install_pyfhel.py || test "$$CI" != true
	@touch $@

# secagg itself, editable; again after a change of its metadata or kernels.
$(VENV)/installed: $(VENV)/packages pyproject.toml setup.py $(KERNELS)
	@echo "[setup] building secagg"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
	@echo "[setup] ready"
