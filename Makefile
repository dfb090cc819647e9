# `make demo` and `make test` do everything on a fresh clone: environment, installation, the job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: install demo test check lint types bench docs gallery

install: $(VENV)/.installed

# torch comes first and pinned: without the pin the resolver may choose a build with several GB of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/fallline compare digits-mlp --methods adamw,lion,shampoo,dog --budget steps=300 --tune 6 --seeds 5 --workers 2 --out demo

test: install
	$(BIN)/python -m pytest -n 2 -q

lint: install
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

# Runs every claim at quick scale and compares each verdict with the recorded evidence.
check: install
	$(BIN)/fallline check --all

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'site/index.html; with its search: $(BIN)/python -m http.server --directory site'

gallery: install
	$(BIN)/fallline gallery

bench: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	for name in optim_step optim_rules overhead fisher_window study matrix_roots curvature preconditioned step_time step_sizes solvers linear_models linear_systems graphs; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/tables.py
