# make demo [DATA=folder]  all of it in 5 minutes, on synthetic data or on Figshare's .mat files, with a picture
# make test                lint, types and tests; while editing, test-fast: those that take less than a second
# make test-all            further examples of what make test shows on some; test-matrix: all ways of installing
# make docs                these pages as HTML, docs/_build/html/index.html; a broken link or an undocumented option fails
# All install what they need into .venv, once.
PYTHON ?= python3
DATA ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test
INSTALLED_DOCS := $(VENV)/.installed-docs

.PHONY: demo test test-fast test-all test-matrix lint docs clean

demo: $(INSTALLED)
	@$(VENV)/bin/braintum_demo $(if $(DATA),--data "$(DATA)")
	@echo; echo "The model that comes trained, on three real slices (docs/_static/slices):"
	@$(VENV)/bin/braintum_predict -i docs/_static/slices -o demo_output/trained_model

# two processes of one thread each: most tests are too small to keep two threads busy
PYTEST := OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15

test: lint
	$(PYTEST) -m "not thorough"

test-fast: lint
	$(PYTEST) -m "not slow and not thorough and not matrix"

test-all: lint
	$(PYTEST)

test-matrix: $(INSTALLED_TEST)
	BRAINTUM_FULL_MATRIX=1 $(VENV_PYTHON) -m pytest -m matrix --durations=15

lint: $(INSTALLED_TEST)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

docs: $(INSTALLED_DOCS)
	$(VENV_PYTHON) -m sphinx -W --keep-going -j auto -q docs docs/_build/html

$(VENV_PYTHON):
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(VENV_PYTHON)
	@echo "Installing into $(VENV): once, some minutes and several GB"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(INSTALLED_TEST): setup.cfg pyproject.toml | $(VENV_PYTHON)
	@echo "Installing into $(VENV): once, some minutes and several GB"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $(INSTALLED) $@

$(INSTALLED_DOCS): setup.cfg pyproject.toml | $(VENV_PYTHON)
	@echo "Installing into $(VENV): once, some minutes and several GB"
	@$(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist demo_output docs/_build docs/reference/generated *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
