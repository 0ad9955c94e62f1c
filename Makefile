# Every target makes its own .venv from the system Python (>= 3.11) and needs nothing else.
#   make quickstart                       train an agent in CodeSandbox-v0 on two CPU cores, in about five minutes
#   make quickstart seed=1 model=FOLDER   another seed, or your own transformers model (run=FOLDER, args="KEY=VALUE ...")
#   make test                             every test that needs no service, at most ten minutes
#   make test-docker                      the tests that need a Docker engine; starts one of its own (as root, on Debian)
#   make lint                             ruff, pyright and the layer contract
#   make bench                            every benchmark, into benchmarks/results/
#   make claims                           every claim of the README and docs, into claims/ (hours)
#   make clean                            remove .venv and what the tools left
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH := $(shell grep '^torch==' constraints.txt)
workers ?= 2

export PYTHONSAFEPATH := 1
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-docker lint bench claims clean

help:
	@sed -n '2,/^PYTHON/{/^#/s/^#   //p;}' Makefile

# torch goes first and alone: what follows then finds it installed, at the pinned version.
$(VENV)/installed: pyproject.toml constraints.txt scripts/make_venv.sh
	@sh scripts/make_venv.sh "$(PYTHON)" "$(VENV)"
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e '.[train,report]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -c constraints.txt -e '.[train,report,test,lint]'
	@touch $@

quickstart: $(VENV)/installed
	$(BIN)/palaestra train quickstart $(if $(seed),seed=$(seed)) $(if $(model),model=$(model)) $(if $(run),run=$(run)) $(args)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(workers) --durations=10 -m "not docker and not gvisor" $(args)

test-docker: $(VENV)/installed-dev
	$(BIN)/python scripts/docker_engine.py -- $(BIN)/python -m pytest --durations=10 -m docker $(args)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(VENV)/installed-dev
	$(BIN)/python claims/run.py --out benchmarks/results $(args)

claims: $(VENV)/installed-dev
	$(BIN)/python claims/run.py --out claims $(args)
	$(BIN)/python claims/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis benchmarks/results
