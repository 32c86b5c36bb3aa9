# hyperhive. `make help` lists the targets; `make demo` is where to begin.

# `ARGS="…"` goes to the program behind a target: make demo ARGS="--token-file FILE", make test ARGS="-k shim".

# The one interpreter that needs nothing installed. Environments are made from it by the installer.
PYTHON := $(firstword $(wildcard /usr/bin/python3 /usr/local/bin/python3) python3)
IN_VENV := PYTHONPATH=$(CURDIR) .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help demo demo-reset deps deps-dev beds test test-full lint format bench screenshots lock

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## a whole hive on this machine (HIVE_PORT, DEMO_DIR, ANTHROPIC_API_KEY)
	@$(PYTHON) -m reconciler.demo $(ARGS)

demo-reset: ## wipes the demo's state
	@$(PYTHON) -m reconciler.demo --reset

deps: ## installs what the demo needs
	@$(PYTHON) -m reconciler.demo.install

deps-dev: ## installs what tests, linters and screenshots need as well
	@$(PYTHON) -m reconciler.demo.install --dev

beds: deps-dev ## makes the hosts that tests of systemd units run in (cached in ~/.cache/hyperhive)
	@$(PYTHON) -m checks.bed build
	@$(PYTHON) -m checks.bed build --vm bookworm

test: beds ## linters and all tests; ends with what ran and what was left out, by name
	@$(PYTHON) -m checks.test $(ARGS)

test-full: beds ## the same with long property runs
	@HYPOTHESIS_PROFILE=full $(PYTHON) -m checks.test $(ARGS)

lint: deps-dev ## ruff, mypy, import-linter, shellcheck, the web's linters
	@$(PYTHON) -m checks.lint

format: deps-dev ## formats the Python code
	@$(IN_VENV) ruff format .
	@$(IN_VENV) ruff check --fix .

bench: deps-dev ## prints the figures of bench/ (ARGS="noop starts": only those)
	@$(IN_VENV) bench $(ARGS)

screenshots: deps-dev ## every page as a picture, in test-results/screens
	@$(IN_VENV) tests.e2e.screenshots $(ARGS)

lock: ## resolves requirements/*.in anew into hash-pinned locks for Python 3.11 and newer
	@$(PYTHON) requirements/lock.py $(ARGS)
