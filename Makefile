PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test lint campaign clean

install: .venv/installed

.venv/installed: pyproject.toml setup.py skiprnn/native.cpp
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# Data, training, evaluation and figure of a Skip LSTM on the adding task, into demo/.
demo: install
	rm -rf demo
	$(BIN)/skiprnn gen-data adding --out demo/adding.h5
	$(BIN)/skiprnn train --cell lstm --lam 1e-5 --preset quick --data demo/adding.h5 --out demo/run
	$(BIN)/skiprnn evaluate demo/run
	$(BIN)/skiprnn plot-usage demo/run --out demo/usage.png
	$(BIN)/skiprnn plot-curves demo/run --out demo/curves.png

test: lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Damaged and hostile files, kills and full disks, some 15 minutes: docs/reliability.md. Ten times as many: TIMES=10.
campaign: install
	$(BIN)/python -m campaign --times $(or $(TIMES),1) --seed $(or $(SEED),0)

clean:
	rm -rf .venv demo build dist *.egg-info
