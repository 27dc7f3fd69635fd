# Everything is set up in .venv by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint types check clean

demo: .venv/.demo          ## the whole road in five minutes, offline
	$(BIN)/armillary demo

test: .venv/.dev           ## what every change must pass, under 8 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/.dev       ## with the long ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell src tests docs benchmarks README.md CHANGELOG.md

types: .venv/.dev
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test-all

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Armillary needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[demo,text]'
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/.demo
