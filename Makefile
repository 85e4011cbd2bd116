# Every target does its own set-up: a virtual environment in the checkout, made once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Most tests wait for real processes: more workers than cores end sooner.
PYTEST_FLAGS ?= -n 4

.PHONY: help setup check test bench reproduce simulate demo wire lock clean
help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make the virtual environment, with everything development needs

# torch comes first and alone: with it in place, nothing else asks for another build of it.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Lepton needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "python3 -m venv failed: install the venv package of your distribution" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock \
	  -e '.[dev,learn,kubernetes,nvml,report,traces]'
	@touch $(READY)

check: $(READY) ## format, lint, types, import contracts, wire code up to date
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check

test: $(READY) ## run the tests; those that need the machine to themselves come first
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "not alone" $(PYTEST_FLAGS)

bench: $(READY) ## run every benchmark, then show them as one table
	$(BIN)/python -m benchmarks

reproduce: $(READY) ## compute the published results again from ../shared/data (ARGS="--tables 1"), into docs/reproduction.md
	$(BIN)/python -m simulator.reproduction $(ARGS)

simulate: $(READY) ## compare two policies on the sample of jobs that ships; the page is build/simulation/report.html
	$(BIN)/lepton simulate --cluster examples/cluster.yaml --trace simulator/data/sample.jsonl.gz \
	  --policy fifo,least_attained_service --out build/simulation

demo: $(READY) ## the main job, on this machine: train, preempt, crash, resume, serve (KEEP=1 leaves it running)
	$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

wire: $(READY) ## regenerate scheduler/wire from proto/
	$(BIN)/python proto/generate.py

lock: $(READY) ## write the versions of this environment to requirements.lock
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > requirements.lock

clean: ## remove what the targets above made
	rm -rf $(VENV) .demo *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
