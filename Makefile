# From a fresh clone, with only Python 3.11, make and a package index: `make demo`, `make test`, `make check`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: demo test test-models check format install clean chaos chaos-mutants bench

install: $(READY)

# torch first, and by this exact version: whatever else wants torch then takes the one that is there.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[worker,test]'
	touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py

# Most tests wait for something: four at a time. The chaos runs, side by side, have the machine for themselves.
test: $(READY)
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder -m "not models" --ignore tests/chaos
	$(BIN)/python -m pytest --numprocesses 3 --dist loadgroup tests/chaos

# What `test` leaves out: each generator in detail, over every family of models that it takes, and every tiny example.
test-models: $(READY)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m models tests/contract tests/integration

# Faults of every kind against real processes: make chaos SEED=7 MINUTES=5 DATABASE=sqlite
SEED     ?= 1
MINUTES  ?= 5
DATABASE ?= postgres

chaos: $(READY)
	PYTHONPATH=.:tests:tests/chaos $(BIN)/python tests/chaos/run.py --seed $(SEED) --minutes $(MINUTES) --database $(DATABASE)

# Breaks each promise in a copy of the tree, and sees that tests and faults notice; takes twenty minutes.
chaos-mutants: $(READY)
	$(BIN)/python tests/chaos/mutants.py

# Side by side with what it is compared with: hours, and goes on where it stopped; make bench QUICK=1 takes minutes.
QUICK ?=

bench: $(READY)
	$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick,--resume)
	$(BIN)/python -m benchmarks.run --write-docs

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-swift out .demo .bench
