# Two commands do all the set-up on a machine with Python >= 3.11, git and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Half of an installation's time would go into compiling what is never imported; Python compiles what is.
PIP := $(BIN)/python -m pip install --quiet --no-compile
PACKAGES := landscape probes viz

# One worker per core, one thread per worker: more of either only thrashes.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); if [ $$n -gt 8 ]; then n=8; fi; echo $$n)
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST_ARGS ?=
DEMO_ARGS ?=
DOCS_ARGS ?= -q

# What each command needs of pyproject.toml's extras; EXTRAS=dev,docs installs those once, for all of them.
EXTRAS ?=
installed = $(VENV)/.installed-$(or $(EXTRAS),$(1))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help demo test thorough docs lint types format clean FORCE

help:  ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{ printf "  make %-8s %s\n", $$1, $$2 }'

demo: $(call installed,demo)  ## set up, then train the demo under watch and write its figure and page
	$(BIN)/losscope demo $(DEMO_ARGS)

test: $(call installed,test)  ## set up, then run tests and doctests (PYTEST_ARGS="-k name")
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist worksteal --doctest-modules -m "not thorough" $(PYTEST_ARGS) --pyargs losscope tests

thorough: $(call installed,test)  ## the further cases that `test` leaves out, to stay under 25 minutes on two cores
	$(ONE_THREAD) $(BIN)/pytest -n $(JOBS) --dist worksteal -m thorough $(PYTEST_ARGS) tests

docs: $(call installed,docs)  ## build the documentation, which runs its examples; warnings are errors
	$(ONE_THREAD) $(BIN)/sphinx-build -b html -n -W --keep-going $(DOCS_ARGS) docs docs/_build/html
	@echo docs/_build/html/index.html

lint: $(call installed,dev)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(call installed,dev)  ## ruff: mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(call installed,dev)  ## mypy on the installed packages
	$(BIN)/mypy

clean:  ## remove the environment and everything built (not runs/)
	rm -rf $(VENV) build dist docs/_build docs/figures docs/case_studies docs/sg_execution_times.rst *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find $(PACKAGES) tests benchmarks case_studies -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "losscope needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) 'setuptools>=77'
	@touch $@

# The names of the package files. Rewritten only when one came or went (or build/ was removed), because only then must
# the strict editable install be made again: a tree of links under build/, which type checkers and doctests need.
# Edits show through the links.
$(VENV)/.files: FORCE | $(VENV)/.created
	@find $(PACKAGES) -type f ! -path '*/__pycache__/*' | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@ && ls -d build/__editable__* >/dev/null 2>&1; then rm $@.new; else mv $@.new $@; fi

# build/ and *.egg-info go first: setuptools would carry deleted files over from them.
$(VENV)/.installed-%: pyproject.toml $(VENV)/.files | $(VENV)/.created
	rm -rf build *.egg-info
	$(PIP) --no-build-isolation --config-settings editable_mode=strict --editable '.[$*]'
	@touch $@

.PRECIOUS: $(VENV)/.installed-%
