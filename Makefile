# make demo    train an image editor from the shipped tiny models, without pairs, and score it: see runs/demo/
# make test    run the tests
# make check   what CI runs: format, lint, types, import contracts, tests
# make quant   run the tests of quantised weights, with bitsandbytes beside the environment; CI does
# make format  rewrite the sources in the project's style
# make clean   remove the environment and everything built; runs/ stays
#
# The first call creates .venv and installs nopair into it, with exactly the versions in constraints.txt. pip obeys your
# own configuration; where that offers a CPU build of torch, it is taken. Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?= --numprocesses=logical --maxprocesses=4 --dist=loadfile

bin := $(VENV)/bin
installed := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check quant lint format clean

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

demo: $(installed)
	$(bin)/nopair demo

test: $(installed)
	$(bin)/python -m pytest $(PYTEST_FLAGS)

check: lint test

# Not in the environment itself: whatever loads a model would import it, too, and take a second longer.
quant: $(installed)
	$(bin)/python -m pip install --quiet --no-deps --upgrade --target build/quant --constraint constraints.txt bitsandbytes
	PYTHONPATH=build/quant $(bin)/python -m pytest tests/test_quantised.py

lint: $(installed)
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/pyright --pythonpath $(bin)/python
	$(bin)/lint-imports --no-cache --no-logo

format: $(installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment for all: installing a second set of packages would pull nopair from under a demo that runs beside it.
$(installed): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "nopair needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not found')." \
	         "Name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(bin)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	    echo "$(PYTHON) cannot create $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing nopair into $(VENV). The first time this downloads torch and takes some minutes."
	$(bin)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
