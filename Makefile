PYTHON ?= python3
VENV := .venv
BIN = $(VENV)/bin
# Versions that are known to work together; `make install LATEST=1` takes the newest instead.
CONSTRAINTS := $(if $(LATEST),,constraints/known-good.txt)
# A worker for each core, which keeps to one thread: tests/conftest.py. `pytest` alone runs without workers.
PYTEST := -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install demo test docs gpu-test test-slow test-oldest test-latest lint campaign sanitize constraints clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py skiprnn/engines/native.cpp $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS)) --editable '.[dev]'
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
	$(BIN)/python $(PYTEST)

# The pages of docs/ as a site, site/index.html; docs/cli.md, tables of results and the figures of speed are made anew.
docs: install
	$(BIN)/python docs/write_cli.py
	$(BIN)/python docs/write_tables.py
	$(BIN)/python benchmarks/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The tests that say something of a GPU, on this machine's: engines and their kernels, training, features of videos.
gpu-test: install
	$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch finds no CUDA device here")'
	env -u TRITON_INTERPRET $(BIN)/python -m pytest -p no:xdist -m gpu

# The tests that `make test` leaves out, for they take long: clusters of Ray, processes killed, all of a data set, and of
# large grids the cases without a pair of values that is in no other.
test-slow: install
	$(BIN)/python $(PYTEST) -m slow

# The suite with the oldest versions that pyproject.toml admits, and with the newest, in environments of their own.
test-oldest:
	$(MAKE) install VENV=.venv-oldest CONSTRAINTS=constraints/oldest.txt
	.venv-oldest/bin/python $(PYTEST)

test-latest:
	$(MAKE) install VENV=.venv-latest LATEST=1
	.venv-latest/bin/python $(PYTEST)

# Take the versions that the newest environment has, once `make test-latest` passes there, for known to be good.
constraints:
	{ grep '^#' constraints/known-good.txt; .venv-latest/bin/pip freeze --exclude-editable; } > constraints/new.txt
	mv constraints/new.txt constraints/known-good.txt

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Damaged and hostile files, kills and full disks, some 15 minutes: docs/reliability.md. Ten times as many: TIMES=10.
campaign: install
	$(BIN)/python -m campaign --times $(or $(TIMES),1) --seed $(or $(SEED),0)

# The compiled engine's tests with every read and write checked: it is built for that, and afterwards as before.
sanitize: install
	SKIPRNN_SANITIZE=1 $(BIN)/python setup.py --quiet build_ext --inplace --force
	ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
		$(BIN)/python -m pytest -p no:xdist -m '' tests/library/test_events.py tests/library/test_bfloat16.py \
		tests/library/test_table.py \
		-k "compiled or instruction or memory or round or table"; \
		status=$$?; $(BIN)/python setup.py --quiet build_ext --inplace --force; exit $$status

clean:
	rm -rf .venv .venv-oldest .venv-latest demo site .cache build dist *.egg-info
