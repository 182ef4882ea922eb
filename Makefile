# Every target works from a fresh clone on Debian with Python 3.11 or 3.12. MindSpore has no wheel for
# newer ones, so the first python of these two versions is taken.
FITTING := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
    $$python -c '$(FITTING)' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
LOCK := requirements/ci.txt
DEMO_LOCK := requirements/demo.txt
PEERS ?= .venv-peers
TRITON ?= .venv-triton
FUZZ ?= .venv-fuzz
TRITON_PYTHON ?= /usr/bin/python3
# Checks, or processes with tests, that run at the same time.
JOBS ?= 2

.PHONY: demo check test lint types stubs stubs-check sync-client sync-client-check
.PHONY: protos-check docs docs-check quick unit coverage
.PHONY: bare-clone examples long lock peers peers-serving bench unauthenticated hostile-images faults fuzz fuzz-coverage
.PHONY: soak audit clean screenshots

# Trains, evaluates, exports and serves a model of real images.
demo: $(DEMO_STAMP)
	$(BIN)/python -m examples.demo --out demo-out

# For the time between two edits, about four minutes on two cores.
check: lint types quick

# Everything that CI runs.
test: $(STAMP)
	$(MAKE) --no-print-directory --jobs $(JOBS) --output-sync=target types docs-check lint \
	    stubs-check sync-client-check protos-check
	$(MAKE) unit

# Installs exactly the versions of the lock file, then the project itself. Compiling all modules to
# bytecode takes half a minute: only those are compiled that the processes of jobs import, which
# otherwise takes each of them four seconds where PYTHONDONTWRITEBYTECODE is set.
#
# $(call install,LOCK FILE) shows pip's progress, as downloads take minutes.
define install
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(FITTING)' || { echo "make: no Python 3.11 or 3.12 with venv \
	was found ($(or $(PYTHON),python3) is $$($(or $(PYTHON),python3) --version 2>&1)), and MindSpore has no wheel for others: \
	install one (Debian: python3-venv) and run make PYTHON=/path/to/python3.12; to only serve \
	models, pip install '.[serve]'"; exit 1; }
	@echo "Installing the $$(grep -c == $(1)) packages of $(1) into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --no-compile --no-deps --require-hashes --requirement $(1)
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import multigrain.train.job, multigrain.evaluate, \
	    multigrain.export, multigrain_server.main, multigrain_client.cli'
endef

$(STAMP): pyproject.toml $(LOCK)
	$(call install,$(LOCK))
	@touch $(DEMO_STAMP) $@

# What the demo needs: a part of $(LOCK), without the tools of developers.
$(DEMO_STAMP): pyproject.toml $(DEMO_LOCK)
	$(call install,$(DEMO_LOCK))
	@touch $@

# Resolves the dependencies in pyproject.toml for Linux and Python 3.11 (3.12 installs the same
# versions): of CI, and of the container image, which takes a part of them. Keeps what is in the
# lock files if it still fits; `make lock UPGRADE=--upgrade` takes the newest versions. Needs no
# $(STAMP): the lock file may not fit pyproject.toml at this moment.
UPGRADE ?=
# $(call resolve,PYTHON,EXTRAS,NAME,OPTIONS) writes requirements/NAME.txt.
define resolve
	.venv-lock/bin/uv pip compile --quiet --python-version $(1) --python-platform linux \
	    --generate-hashes --no-header $(UPGRADE) $(addprefix --extra ,$(2)) $(4) \
	    pyproject.toml --output-file requirements/$(3).txt
endef
lock:
	test -x .venv-lock/bin/uv || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet 'uv>=0.13,<1'
	$(call resolve,3.11,server demo dev,ci)
	$(call resolve,3.11,image,server,--constraint $(LOCK))
	$(call resolve,3.11,server demo,demo,--constraint $(LOCK))
	grep -Eo '^[a-z0-9.-]+==[^ ]+' $(LOCK) | grep -v '^numpy==' > .venv-lock/tested.txt
	$(call resolve,3.11,image-serve,serve,--constraint .venv-lock/tested.txt)
	.venv-lock/bin/uv pip compile --quiet --python-version 3.11 --python-platform linux \
	    --generate-hashes --no-header $(UPGRADE) requirements/stubs.in --output-file requirements/stubs.txt

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# Generates the stubs of protos/ in multigrain/v1/, in part with an old compiler, for which it creates
# .venv-stubs.
stubs: $(STAMP)
	$(BIN)/python -m tools.stubs --write

# Fails if the committed stubs differ from those that protos/ generates.
stubs-check: $(STAMP)
	$(BIN)/python -m tools.stubs --check

# Generates the blocking client from the asyncio client, and the client's LossPoint from protos/.
sync-client: $(STAMP)
	$(BIN)/python -m tools.client_code --write

# Fails if the committed files differ from those that `make sync-client` generates.
sync-client-check: $(STAMP)
	$(BIN)/python -m tools.client_code --check

# Trains two small models and takes the screenshots in docs/screenshots; needs chromium.
screenshots: $(STAMP)
	$(BIN)/python -m tools.screenshots

# Writes the generated parts of docs/ and builds the site to site/.
docs: $(STAMP)
	$(BIN)/python -m tools.docs --write
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Fails when a generated part of docs/ is out of date or the site has a broken link.
docs-check: $(STAMP)
	$(BIN)/python -m tools.docs --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Fails if the contract is incompatible with the last released one.
protos-check: $(STAMP)
	$(BIN)/buf lint
	$(BIN)/buf breaking --against protos/released.binpb

# The tests that start no process of the project and do not import MindSpore.
quick: $(STAMP)
	$(BIN)/pytest --quick --numprocesses $(JOBS) --dist worksteal

# All tests but the long ones. MindSpore compiles a graph on one core, and tests of other processes mostly wait. The
# tests of a file run in one process: many share what took long to make.
IN_PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder
unit: $(STAMP)
	$(BIN)/pytest -m "not long" $(IN_PARALLEL)

# Runs the examples in other languages where Node, Java (17) or Go is installed; on Debian:
# apt-get install nodejs npm default-jdk-headless golang-go. `make test` runs those without packages.
examples: $(STAMP)
	npm install --prefix examples/node --no-audit --no-fund
	$(BIN)/pytest tests/examples/test_other_languages.py

# Trains ResNet-50 at 224 px, three minutes.
long: $(STAMP)
	$(BIN)/pytest -m long

# Runs tests and prints the share of lines that they executed, child processes included: all tests,
# or those of TESTS (TESTS=--quick takes about two minutes). Much faster with Python 3.12.
TESTS ?=
# An engine in its sandbox could not write what it has measured.
coverage: $(STAMP)
	$(BIN)/coverage erase
	MULTIGRAIN_SERVING__SANDBOX=off $(BIN)/coverage run -m pytest $(IN_PARALLEL) $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --skip-empty

# Compares the network, the losses and whole training steps with PyTorch. PyTorch is not a
# dependency, so it has an environment of its own; if pip's index only has CUDA builds, set
# PIP_EXTRA_INDEX_URL.
peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest tests/peers -s

$(PEERS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --upgrade pip
	$(PEERS)/bin/pip install --quiet --editable '.[server,dev,hub]' torch==2.13.0
	touch $@

# Walks the tutorial on photographs from a fresh clone with an environment of its own, a quarter of an
# hour. PHOTOGRAPHS=DIR does it with a folder of yours.
bare-clone: $(STAMP)
	$(BIN)/python -m tests.e2e.bare_clone $(if $(PHOTOGRAPHS),--photographs $(PHOTOGRAPHS))

# The main benchmarks of serving and training, 20 minutes on an idle machine; `python -m benchmarks`
# lists all of them. Writes benchmarks/measured/PROCESSOR/NAME.json for each, and the tables of the
# documentation from these files. A missed goal or a failure does not keep the others from running.
# Without `make peers` before, PyTorch is a row that says that it is missing.
BENCHMARKS ?= main
bench: $(STAMP)
	-$(BIN)/python -m benchmarks $(BENCHMARKS)
	$(BIN)/python -m tools.docs --write

# Serving next to a plain gRPC server and PyTriton, five minutes. PyTriton embeds Python 3.11.0 and
# loads the standard library it finds: Debian's fits, newer releases of 3.11 do not.
peers-serving: $(STAMP) $(TRITON)/.installed
	-$(BIN)/python -m benchmarks.other_servers --pytriton $(TRITON)/bin/python
	$(BIN)/python -m tools.docs --write

$(TRITON)/.installed:
	$(TRITON_PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/pip install --quiet nvidia-pytriton==0.7.0 onnxruntime==1.32.0 pillow numpy
	touch $@

# What callers without a token can do to a daemon that needs tokens, four minutes.
unauthenticated: $(STAMP)
	$(BIN)/python -m benchmarks.unauthenticated

# An ordinary caller beside callers that send hostile images, HOSTILE_SECONDS for each of some twenty
# kinds, on an idle machine. Fails if the ordinary caller suffers.
HOSTILE_SECONDS ?= 10
hostile-images: $(STAMP)
	$(BIN)/python -m benchmarks.hostile_images --seconds $(HOSTILE_SECONDS)

# The fault injection tests with many more faults than in `make test`, half an hour. They print
# their random seed; MULTIGRAIN_FAULT_SEED=N repeats a run.
faults: $(STAMP)
	MULTIGRAIN_FAULTS=full $(BIN)/pytest -s --timeout 3600 tests/faults

# Sends slightly damaged input to every call and every parser, FUZZ_SECONDS for each of seventeen
# parts. Every run has a new random seed, which a failure prints.
FUZZ_SECONDS ?= 20
fuzz: $(STAMP)
	MULTIGRAIN_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest tests/fuzz

# Coverage-guided fuzzing of the same parsers with atheris, FUZZ_TARGET_SECONDS for each of some
# twenty targets. atheris is not needed for anything else, so it has an environment of its own.
FUZZ_TARGET_SECONDS ?= 60
fuzz-coverage: $(FUZZ)/.installed
	$(FUZZ)/bin/python -m tests.fuzz.coverage_guided --seconds $(FUZZ_TARGET_SECONDS)

$(FUZZ)/.installed: pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(FUZZ)
	$(FUZZ)/bin/pip install --quiet --no-deps --require-hashes --requirement $(LOCK)
	$(FUZZ)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	$(FUZZ)/bin/pip install --quiet --no-build-isolation --editable '.[fuzz]'
	touch $@

# Trains, serves, swaps models, cancels and kills at once for MINUTES and checks for leaks; then
# repeats it with a daemon that leaks, which must be detected.
MINUTES ?= 30
soak: $(STAMP)
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

# Known vulnerabilities of the installed packages, from the package index. Also fails if the index
# cannot answer for every package, as private indexes cannot.
audit: $(STAMP)
	$(BIN)/pip install --quiet 'pip-audit>=2.9,<3'
	$(BIN)/pip freeze --exclude-editable > $(VENV)/installed.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement $(VENV)/installed.txt

clean:
	rm -rf $(VENV) .venv-lock .venv-stubs $(PEERS) $(TRITON) $(FUZZ) fuzz-findings demo-out build dist site .coverage .coverage.*
