# Two targets do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint

help:
	@echo "make demo   quantize the bundled codec, code photographs to files, leave demo/report/index.html"
	@echo "make test   lint, types and tests"
	@echo "make lint   ruff and mypy only"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rdquant needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute)"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[train,dev,report,anchors]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rdquant demo --out demo

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest
