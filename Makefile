# Every target sets up what it needs: Python (3.11 or newer) and make are enough on a fresh machine.
PYTHON ?= python3
SEEDS ?= 100
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint simulate clean

demo: $(READY)
	$(BIN)/python -m examples.demo

test: $(READY) lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

simulate: $(READY)
	$(BIN)/python -m tests.simulator --seeds $(SEEDS)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --group dev --editable '.[serve]'
	touch $@

clean:
	rm -rf $(VENV)
