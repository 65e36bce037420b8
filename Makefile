# Every target sets up what it needs: Python (3.11 or newer) and make are enough on a fresh machine, and for the tests
# bash and curl.
PYTHON ?= python3
SEEDS ?= 100
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Tests in simulated time: they need a processor, and do not care how much of it they get.
SIMULATED := tests/test_simulator.py tests/test_guards.py tests/test_simulate.py

.PHONY: demo test test-real test-simulated lint simulate docs release foreign-suites clean

demo: $(READY)
	$(BIN)/python -m examples.demo

test: $(READY) lint
	$(MAKE) --jobs=2 --output-sync=target test-real test-simulated

test-real: $(READY)
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile $(SIMULATED:%=--ignore=%)

test-simulated: $(READY)
	nice -n 19 $(BIN)/python -m pytest $(SIMULATED)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

simulate: $(READY)
	$(BIN)/python -m tests.simulator --seeds $(SEEDS)

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	! grep -rlE '<(script|link|img|iframe)[^>]* (src|href)="?(https?:)?//' site --include='*.html'  # nothing from elsewhere

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

# The tests of Django and others, for those of `replidict.contrib`; without them some tests are skipped.
foreign-suites: $(READY)
	$(BIN)/python -m tests.foreign_suites

release: $(READY)
	$(BIN)/python -m pip install --quiet --group release
	$(BIN)/python -m tests.release

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --group dev --editable '.[serve,django,apscheduler,tooz]'
	touch $@

clean:
	rm -rf $(VENV)
