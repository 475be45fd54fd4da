# What one does with this repository. Needs Python 3.11 or later with its venv module; everything else goes into .venv.
#
#   make test     the tests, but those that take minutes       make soak    those
#   make run      the main job: a year of flights, one node killed in the middle    (ARGS="--flights 20000 --no-kill")
#                 the same on a PostgreSQL server of its own: make run STORE=postgresql, make chaos STORE=postgresql
#   make bench    measures, and prints each figure beside its bound                 (ARGS="--quick --json FILE")
#   make chaos    faults on a real Ray cluster under load, the history checked      (ARGS="--minutes 1 --json FILE")
#   make check    style and types                              make wheel   build the wheel, try it in an empty environment
#
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
ARGS   ?=
STORE  ?=
BIN    := $(abspath $(VENV))/bin
READY  := $(VENV)/.ready
WHEEL  := build/wheel
FLOORS := -p atoll.actors -p atoll.persistence -p atoll.sharding -p atoll.cluster

# The root is the package: type checkers find the name `atoll` through the link .types/atoll, which leads back here.
export MYPYPATH := $(abspath .types):$(abspath deploy):$(abspath examples):$(abspath bench):$(abspath tests/helpers)

.DEFAULT_GOAL := help
.PHONY: help test soak check bench run chaos wheel clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n '1,10p'

$(READY): pyproject.toml
	@echo "== preparing $(VENV) with $(PYTHON), for the first time or because pyproject.toml changed"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Atoll needs Python 3.11 or later: make ... PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@mkdir -p .types && ln -sfn .. .types/atoll
	@touch $@

test: $(READY)
	$(BIN)/pytest -m "not soak" $(ARGS)

soak: $(READY)
	$(BIN)/pytest -m soak $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(FLOORS)
	$(BIN)/mypy --python-version 3.13 $(FLOORS)
	$(BIN)/mypy deploy examples bench tests/typing
	PYTHONPATH=$(abspath .types) $(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python bench/run.py $(ARGS)

run: $(READY)
	$(BIN)/python examples/flights.py $(if $(STORE),--store $(STORE)) $(ARGS)

chaos: $(READY)
	$(BIN)/python deploy/chaos.py $(if $(STORE),--store $(STORE)) $(ARGS)

# In build/ and dist/ nothing old may lie: setuptools would ship a module that was deleted since.
wheel: $(READY)
	rm -rf build dist
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(BIN)/python -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd / && $(abspath $(WHEEL))/bin/python -I $(abspath tests/wheel/smoke.py)

clean:
	rm -rf $(VENV) .types build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
