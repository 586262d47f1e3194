# The front door. `make` alone lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_BENCH := $(VENV)/.ready-bench
READY_FILES := pyproject.toml constraints.txt
TESTERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test check bench bars docs crds images acceleration clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 22

$(READY): $(READY_FILES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(READY_BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

run: $(READY) ## train a small model that grows, with the comparison, on this machine
	$(BIN)/esper run examples/mnist1d.yaml --compare

test: $(READY) ## run the tests, in TESTERS processes (2; 0: in this one)
	$(BIN)/python -m pytest --numprocesses=$(TESTERS) --dist=worksteal

check: $(READY) ## format, lint, types, layers, generated files up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=operator $(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

bench: $(READY_BENCH) ## the growth benchmark: all arms, tuned, with intervals (hours)
	$(BIN)/esper bench growth

bars: $(READY_BENCH) ## measure every bar that a machine can run; one JSON line each
	$(BIN)/python -m benchmarks.bars

docs: $(READY) ## write docs/manifest.md, docs/cli.md and crds/ from the code
	$(BIN)/python docs/generate.py

crds: docs ## the same

images: ## build the container images operator and runtime; images/build.sh --help says more
	images/build.sh $(IMAGES)

acceleration: $(READY) ## optional: torch-scatter, which is compiled here (about 5 minutes)
	$(BIN)/python -m pip install -c constraints.txt setuptools
	$(BIN)/python -m pip install --no-build-isolation torch-scatter==2.1.2

clean: ## remove the environment and caches; runs/ and results/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
