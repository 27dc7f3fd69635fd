# Everything is set up in .venv by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all test-gpu lint types check clean

demo: .venv/.demo          ## the whole road in five minutes, offline
	$(BIN)/armillary demo

test: .venv/.dev           ## what every change must pass, under 8 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: .venv/.dev       ## with the long ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

test-gpu: .venv/.dev       ## on a CUDA device; junit.xml, pytest_report.json, system.json and stdout.log under test-gpu/
	@folder=test-gpu/$$(date -u +%Y%m%dT%H%M%SZ) && mkdir -p $$folder && \
	ARMILLARY_BATTERY=$$folder $(BIN)/python -m pytest tests/gpu -m gpu -v -rs --junitxml=$$folder/junit.xml \
	  > $$folder/stdout.log 2>&1; status=$$?; cat $$folder/stdout.log; echo $$folder; exit $$status

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
