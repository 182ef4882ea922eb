# Every target works from a fresh clone on Debian with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types stubs stubs-check protos-check unit bench clean

# The README's first command: train, evaluate, export and serve on real images.
demo: $(STAMP)
	$(BIN)/multigrain demo --out demo-out

# The README's second command: everything that CI checks.
test: lint types stubs-check protos-check unit

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[server,demo,dev]'
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Writes the stubs of protos/ to multigrain/v1/.
stubs: $(STAMP)
	$(BIN)/python -m tests.tools.stubs --write

# Fails when the committed stubs are not those of protos/.
stubs-check: $(STAMP)
	$(BIN)/python -m tests.tools.stubs --check

# The contract may only grow: compared with the last released one.
protos-check: $(STAMP)
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

unit: $(STAMP)
	$(BIN)/pytest

clean:
	rm -rf $(VENV) demo-out build dist
