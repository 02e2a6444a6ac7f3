# Two targets do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint docs docs-test bench

help:
	@echo "make demo   quantize the bundled codec, code photographs to files, leave demo/report/index.html"
	@echo "make test   lint, types and tests"
	@echo "make lint   ruff and mypy only"
	@echo "make docs   the site, in site/"
	@echo "make docs-test  every tutorial, command by command (minutes), and the site"
	@echo "make bench IMAGES=FOLDER   decoders beside each other, memory, cold starts: benchmarks/results, and the tables"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rdquant needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[train,dev,report,anchors,results,docs]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rdquant demo --out demo

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-test: $(STAMP)
	$(BIN)/python -m pytest -m docs tests/docs

bench: $(STAMP)
	$(BIN)/python benchmarks/bench.py --images $(IMAGES) --threads 1
	$(BIN)/python benchmarks/bench.py --images $(IMAGES) --threads 2
	$(BIN)/python benchmarks/bench.py --images $(IMAGES) --threads 2 --untrained 128 192
	$(BIN)/python benchmarks/large.py --images $(IMAGES)
	$(BIN)/python benchmarks/cold_start.py --image $(firstword $(wildcard $(IMAGES)/*.png))
	$(BIN)/python benchmarks/tables.py
