# `make demo` runs the main job offline; `make test` checks everything. Both set up .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 2

.PHONY: demo test fast lint types clean setup

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/netsmith demo --out runs/demo --overwrite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

# Two processes of one thread each; a file's tests stay together, so that what they share is made once. In the order of
# the folders: the longest single tests (of the command line) come first, and none is left for one process at the end.
test: export OMP_NUM_THREADS = 1
test: lint types
	$(BIN)/pytest tests/test_imports.py
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

fast: setup
	$(BIN)/pytest -m "not slow"

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis
