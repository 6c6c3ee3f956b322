# The two commands of the README, and what CI runs. PYTHON=python3.12 make ... picks another interpreter.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test check

quickstart: .venv/installed ## install, then warm start + GRPO on a laptop
	$(BIN)/python rl/run_grpo.py --config configs/quickstart.yaml

test: .venv/installed-test ## the tests; `make test ARGS="tests/rollout -x"` for some
	DELTARL_FLA_PATH=.venv/fla OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

check: .venv/installed-test ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) --editable .[test]
	@# fla's reference implementations, kept out of the environment: where fla can be imported but has no GPU,
	@# transformers' hybrid models fail.
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/fla flash-linear-attention==0.6.0 fla-core==0.6.0 einops
	touch $@
