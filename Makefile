# Two targets do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint docs docs-test

help:
	@echo "make demo   quantize the bundled codec, code photographs to files, leave demo/report/index.html"
	@echo "make test   lint, types and tests"
	@echo "make lint   ruff and mypy only"
	@echo "make docs   the site, in site/"
	@echo "make docs-test  every tutorial, command by command (minutes), and the site"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rdquant needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[train,dev,report,anchors,docs]"
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
