# `make demo` and `make test` work as the first command ever typed: each makes .venv when it is missing.
SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.made

.PHONY: demo run up test check fuzz faults soak lint format clean

demo: $(STAMP)
	@$(BIN)/haltwire demo

run up: $(STAMP)
	@$(BIN)/haltwire up

test: $(STAMP)
	@$(BIN)/pytest -q

check: lint test

# Half an hour where `make test` takes a minute; HALTWIRE_FUZZ_SECONDS=… for longer.
fuzz: $(STAMP)
	@HALTWIRE_FUZZ_SECONDS=$${HALTWIRE_FUZZ_SECONDS:-1800} $(BIN)/pytest -q -s tests/hostile/test_fuzz_requests.py

# An hour of processes and links that break where `make test` takes a minute; HALTWIRE_FAULT_SECONDS=… and
# HALTWIRE_FAULT_SEED=… for another time or the same again.
faults: $(STAMP)
	@HALTWIRE_FAULT_SECONDS=$${HALTWIRE_FAULT_SECONDS:-3600} $(BIN)/pytest -q -s tests/e2e/test_random_faults.py

# Ten minutes of a steady rate, and what grew meanwhile; HALTWIRE_SOAK_SECONDS=… for longer.
soak: $(STAMP)
	@$(BIN)/python benchmarks/soak.py --seconds $${HALTWIRE_SOAK_SECONDS:-600}

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Made once, and anew when what goes into it changes.
$(STAMP): pyproject.toml constraints.txt
	@set -euo pipefail; \
	works() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }; \
	if command -v uv >/dev/null; then \
	  echo "making .venv with uv (once)"; \
	  [ -x $(BIN)/python ] && works $(BIN)/python || { rm -rf .venv; uv venv --quiet; }; \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev,e2e]'; \
	else \
	  python=; for one in python3.13 python3.12 python3; do \
	    if works $$one; then python=$$one; break; fi; done; \
	  if [ -z "$$python" ]; then \
	    echo "haltwire needs Python 3.12 or newer with venv and pip, or uv, and finds neither: install uv or python3.13." >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$python (once, about half a minute)"; \
	  [ -x $(BIN)/python ] && works $(BIN)/python || { rm -rf .venv; $$python -m venv .venv; }; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,e2e]'; \
	fi; \
	touch $@
