# `make demo` and `make test` do all their own set-up in .venv; nothing else has to be installed but Python >= 3.11.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Numerical libraries must not start threads of their own in every test process.
export OMP_NUM_THREADS := 1

.PHONY: demo test lint test-system benchmark clean

demo: $(READY)
	$(BIN)/neuroshed demo --output demo

test: $(READY) lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal --durations=25 -m "not system"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-system: $(READY)
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --durations=25 -m system

benchmark: $(READY)
	$(BIN)/python benchmarks/stitch.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/predict.py
	$(BIN)/python benchmarks/io.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "neuroshed needs Python >= 3.11, this is " + sys.version.split()[0] + "; name another with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

clean:
	rm -rf .venv demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
