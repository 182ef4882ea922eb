# Every target works from a fresh clone on Debian with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS ?= .venv-peers
TRITON ?= .venv-triton
TRITON_PYTHON ?= /usr/bin/python3

.PHONY: demo test lint types stubs stubs-check protos-check unit peers peers-serving bench fuzz soak
.PHONY: audit clean faults docs docs-check

# The README's first command: train, evaluate, export and serve on real images.
demo: $(STAMP)
	$(BIN)/python -m examples.demo --out demo-out

# The README's second command: everything that CI checks.
test: lint types stubs-check protos-check docs-check unit

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

# Writes the generated parts of docs/ and builds the site to site/.
docs: $(STAMP)
	$(BIN)/python -m tools.docs --write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Fails when a generated part of docs/ is out of date or the site has a broken link.
docs-check: $(STAMP)
	$(BIN)/python -m tools.docs --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The contract may only grow: compared with the last released one.
protos-check: $(STAMP)
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

unit: $(STAMP)
	$(BIN)/pytest

# The network, the losses and the steps against PyTorch, which is no dependency: it comes into an
# environment of its own. (Where pip's index has CUDA builds only, set PIP_EXTRA_INDEX_URL.)
peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest tests/peers -s

$(PEERS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade pip
	$(PEERS)/bin/pip install --quiet --editable '.[server,dev]' torch==2.13.0
	touch $@

# The training core's figures (benchmarks/RESULTS.md): ten minutes on a machine with nothing else
# to do. Each script ends with an error where its bar is missed; the next one runs all the same.
bench: $(STAMP) $(PEERS)/.installed
	-$(BIN)/python -m benchmarks.step_time
	-$(BIN)/python -m benchmarks.memory
	-$(BIN)/python -m benchmarks.job_overhead
	-$(BIN)/python -m benchmarks.pytorch_step --pytorch $(PEERS)/bin/python
	-$(BIN)/python -m benchmarks.scaling

# The promises of the README with many more faults than in `make test`: half an hour. What is random
# prints its seed; MULTIGRAIN_FAULT_SEED=N repeats it.
faults: $(STAMP)
	MULTIGRAIN_FAULTS=full $(BIN)/pytest -s --timeout 3600 tests/faults

# Every call and every reader of bytes from elsewhere, with input that is nearly right: so many
# seconds for each of thirteen parts, from a new seed each time (printed where it fails).
FUZZ_SECONDS ?= 20
fuzz: $(STAMP)
	MULTIGRAIN_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz

# Training, serving, swapping, cancelling and killing at once; then the same with a daemon that
# leaks, which must be noticed.
MINUTES ?= 30
soak: $(STAMP)
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# Known holes in what is installed, asked of the package index; fails too where that does not answer for
# every package (an index of one's own does not know them).
audit: $(STAMP)
	$(BIN)/pip install --quiet 'pip-audit>=2.9,<3'
	$(BIN)/pip freeze --exclude-editable > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/installed.txt

# Serving beside a server written by hand and PyTriton: five minutes. Triton brings the
# interpreter of Python 3.11.0 and runs it with the standard library that it finds, for which
# those of newer 3.11 are too new: Debian's own is not.
peers-serving: $(STAMP) $(TRITON)/.installed
	$(BIN)/python -m benchmarks.serving --pytriton $(TRITON)/bin/python \
	    callers by_hand pytriton

$(TRITON)/.installed:
	$(TRITON_PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet nvidia-pytriton==0.7.0 onnxruntime==1.32.0 pillow numpy
	touch $@

clean:
	rm -rf $(VENV) $(PEERS) $(TRITON) demo-out build dist site
