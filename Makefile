# Two commands: `make demo` runs the whole job on simulated scenes, `make test` runs everything that CI runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Wheels only: building from source would fetch another torch behind our back.
PIP := $(BIN)/python -m pip install --quiet --only-binary=:all: --constraint constraints.txt

.PHONY: demo test lint types contracts unit docs mutants bench clean

demo: .venv/.core
	$(BIN)/seawall run recipes/demo.toml

test: lint types contracts unit docs

.venv/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("seawall needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# torchattacks pins an old requests and asks for torchvision, which it does not need: hence --no-deps.
.venv/.dev: .venv/.core
	$(PIP) --editable '.[test,lint,stac,parquet,deploy]'
	$(PIP) --no-deps torchattacks
	touch $@

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy

contracts: .venv/.dev
	$(BIN)/lint-imports

unit: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

docs: .venv/.dev
	$(BIN)/python docs/build.py --check

# Plants known bugs one at a time and sees whether a test notices; takes tens of minutes.
mutants: .venv/.dev
	$(BIN)/python tests/mutants/run.py

bench: .venv/.dev
	for name in loader metrics attack training corruption scene; do echo "== $$name"; OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
