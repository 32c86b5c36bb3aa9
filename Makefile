# hyperhive. `make help` lists the targets; `make demo` is where to begin.

# The one interpreter that needs nothing installed. Environments are made from it by the installer.
PYTHON := $(firstword $(wildcard /usr/bin/python3 /usr/local/bin/python3) python3)
IN_VENV := PYTHONPATH=$(CURDIR) .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help demo demo-reset deps deps-dev test test-full lint format bench screenshots lock

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## a whole hive on this machine (HIVE_PORT, DEMO_DIR, ANTHROPIC_API_KEY or TOKEN_FILE)
	@$(PYTHON) -m reconciler.demo $(if $(TOKEN_FILE),--token-file '$(TOKEN_FILE)')

demo-reset: ## wipes the demo's state
	@$(PYTHON) -m reconciler.demo --reset

deps: ## installs what the demo needs
	@$(PYTHON) -m reconciler.demo.install

deps-dev: ## installs what tests, linters and screenshots need as well
	@$(PYTHON) -m reconciler.demo.install --dev

test: deps-dev ## linters and all tests; ends with what ran and what was left out, by name
	@$(PYTHON) checks/test.py

test-full: deps-dev ## the same with long property runs
	@HYPOTHESIS_PROFILE=full $(PYTHON) checks/test.py

lint: deps-dev ## ruff, mypy, import-linter, shellcheck, the web's linters
	@$(PYTHON) checks/lint.py

format: deps-dev ## formats the Python code
	@$(IN_VENV) ruff format .
	@$(IN_VENV) ruff check --fix .

bench: deps-dev ## prints the figures of bench/
	@$(IN_VENV) bench

screenshots: deps-dev ## makes docs/screenshots with a demo hive and Chromium
	@$(IN_VENV) bench.screenshots

lock: ## resolves requirements/*.in anew into hash-pinned locks for Python 3.11 and newer
	@$(PYTHON) requirements/lock.py $(LOCK_ARGS)
