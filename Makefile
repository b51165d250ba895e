# make demo DATA=folder   convert, train and predict on a small data set, in a virtual environment of its own
# make test               lint, types and tests; make test-matrix adds all combinations of installations
PYTHON ?= python3
DATA ?=

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_TEST := $(VENV)/.installed-test

# Tests run with $(PYTHON) where it has what they need, else in the virtual environment.
TEST_MODULES := ("nnunetv2", "pytest", "hypothesis", "ruff", "mypy", "setuptools")
READY = $(shell $(PYTHON) -c 'import importlib.util as u, sys; \
	sys.exit(any(u.find_spec(m) is None for m in $(TEST_MODULES)))' 2>/dev/null && echo yes)
# Recursive assignment: looked at by the targets that run tests only, not by "make demo" or "make clean".
TEST_PYTHON = $(if $(READY),$(PYTHON),$(VENV_PYTHON))

.PHONY: demo test test-matrix lint test-environment clean

demo: $(INSTALLED)
	$(VENV)/bin/braintum_demo $(if $(DATA),--data "$(DATA)")

test: lint
	$(TEST_PYTHON) -m pytest --durations=15

test-matrix: test-environment
	BRAINTUM_FULL_MATRIX=1 $(TEST_PYTHON) -m pytest -m matrix --durations=15

lint: test-environment
	$(TEST_PYTHON) -m ruff check .
	$(TEST_PYTHON) -m ruff format --check .
	$(TEST_PYTHON) -m mypy

test-environment:
	@$(if $(READY),true,$(MAKE) $(INSTALLED_TEST))

$(VENV_PYTHON):
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install -e .
	touch $@

$(INSTALLED_TEST): setup.cfg pyproject.toml | $(VENV_PYTHON)
	$(VENV_PYTHON) -m pip install -e ".[test]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
