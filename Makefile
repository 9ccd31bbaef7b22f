# `make help` lists the targets. The environment is made once, and made again only when what it is made from changes.

PYTHON = python3
BIN = .venv/bin
STAMP = .venv/installed
SOURCES = arm_rl actors rewards tools jobs tests
# Two test workers; a file's tests stay together, in the order of tests/conftest.py.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=30

.PHONY: help install demo demo-tools bench bench-tools chaos findings test test-slow test-all fuzz lint format clean

help:
	@echo "make demo     sets up .venv and trains a judge through all its stages (about 11 minutes on 2 cores)"
	@echo "make demo-tools   the same on three tracks, each with a tool of its own to choose (15 to 30 minutes)"
	@echo "make bench    measures speed side by side with other ways, and with TRL (about 30 minutes; leave the machine alone)"
	@echo "make bench-tools  how fast the tools are, directly and through an executor (about 6 minutes)"
	@echo "make chaos    trains while processes of the run are killed, 20 of each kind (about an hour; needs make demo's folder)"
	@echo "make findings   what each design of the reward leads to, on a small task, over 5 seeds (about two hours; goes on where it stopped)"
	@echo "make test     sets up .venv and runs the tests that every change needs (10 minutes on 2 cores)"
	@echo "make test-slow   all other tests: lost nodes, killed processes, full disks, served judges, experiments"
	@echo "make test-all    both"
	@echo "make fuzz     more than 100,000 examples of what a model may write (about an hour)"
	@echo "make lint     style, format and types"
	@echo "make format   rewrites the sources in the house's format"
	@echo "make install  only sets up .venv, for CPU or GPU by what the machine has"
	@echo "make clean    removes .venv, caches and the demos' runs"
	@echo ""
	@echo "PYTHON=python3.12 chooses another interpreter (3.11 or newer), as in: make PYTHON=python3.12 demo"

install: $(STAMP)

# install.py compares the content of these files with what it installed last: a changed date alone costs nothing.
$(STAMP): setup.cfg pyproject.toml $(wildcard install/*.py install/*.txt)
	@$(PYTHON) install/install.py .venv

demo: $(STAMP)
	@$(BIN)/python -m jobs.demo

demo-tools: $(STAMP)
	@$(BIN)/python -m jobs.demo --tools

bench: $(STAMP)
	@$(BIN)/python -m jobs.bench all

bench-tools: $(STAMP)
	@$(BIN)/python -m jobs.bench tools

chaos: $(STAMP)
	@$(BIN)/python -m jobs.chaos

findings: $(STAMP)
	@$(BIN)/python -m jobs.findings

test: $(STAMP)
	@$(PYTEST) -m "not slow"

test-slow: $(STAMP)
	@$(PYTEST) -m slow

test-all: $(STAMP)
	@$(PYTEST)

fuzz: $(STAMP)
	@$(BIN)/python -m pytest tests/fuzz --fuzz --timeout 0 --hypothesis-show-statistics

lint: $(STAMP)
	@$(BIN)/ruff check $(SOURCES) install
	@$(BIN)/ruff format --check $(SOURCES) install
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix $(SOURCES) install
	@$(BIN)/ruff format $(SOURCES) install

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache runs/demo runs/demo-tools
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
