# Every target installs what it needs into .venv, once. Needs only Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
JOBS ?= 2

.PHONY: help install demo test slow lint docs bench index clean

help:
	@echo "make install  install regard and what its commands need into $(VENV)"
	@echo "make demo     race all causal mechanisms on the Python standard library's sources"
	@echo "make test     the default tests"
	@echo "make slow     the long tests"
	@echo "make lint     ruff, mypy, import contracts, generated files"
	@echo "make docs     the documentation, into docs/_build/html"
	@echo "make bench    the races against peers, printed next to their targets (about 20 minutes)"
	@echo "make index    write the generated files anew (index, README table)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "regard needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing regard into $(VENV): PyTorch is large, this takes a few minutes the first time"
	$(PIP) -e '.[train,medical]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing regard and its development tools into $(VENV): this takes a few minutes the first time"
	$(PIP) -e '.[vision,train,medical,dev]'
	@touch $(VENV)/.core $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev
	$(PIP) -e '.[vision,train,medical,peers]'
	@touch $@

install: $(VENV)/.core

# benchmarks/compare.py runs the same race
DEMO := compare text --mechanisms all --steps 150 --lengths 256,1024,4096

demo: $(VENV)/.core
	$(BIN)/regard $(DEMO) --out runs/demo --resume

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) -rs

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m regard.build_index --check

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -W -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/.peers
	$(BIN)/python benchmarks/run.py

index: $(VENV)/.core
	$(BIN)/python -m regard.build_index
	$(BIN)/python docs/generate.py --readme

clean:
	rm -rf build docs/_build docs/systems docs/benchmarks.md .mypy_cache .pytest_cache .ruff_cache
