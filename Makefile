# make demo [DATA=folder]  all of it in 5 minutes, on synthetic data or on Figshare's .mat files, with a picture
# make test                lint, types and tests; make test-matrix runs all combinations of installations
# Both install what they need into .venv, once.
PYTHON ?= python3
DATA ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

.PHONY: demo test test-matrix lint clean

demo: $(INSTALLED)
	$(VENV)/bin/braintum_demo $(if $(DATA),--data "$(DATA)")

# two processes of one thread each: most tests are too small to keep two threads busy
test: lint
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist loadfile --durations=15

test-matrix: $(INSTALLED_TEST)
	BRAINTUM_FULL_MATRIX=1 $(VENV_PYTHON) -m pytest -m matrix --durations=15

lint: $(INSTALLED_TEST)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

$(VENV_PYTHON):
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install -e .
	touch $@

$(INSTALLED_TEST): setup.cfg pyproject.toml | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install -e ".[test]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
