# Each target sets up what it needs; it requires Python 3.10 or later and network access.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed-for-development
PINS := tests/e2e/clients
CLIENTS := .e2e/.installed
# Processes that share the tests, a file at a time.
JOBS ?= 2

.PHONY: run test fast lint bench clients clean

run: $(STAMP) ## start the gateway on the simulator and drive one tool conversation through it
	$(VENV)/bin/python -m gateway.demo $(ARGS)

test: $(STAMP) ## every test; tests of clients that are not installed are skipped
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

fast: $(STAMP) ## the tests that start no process
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "not e2e"

lint: $(STAMP) ## format, rules, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: $(STAMP) ## tables of measurements: the relay, accounts by WebSocket, the admin side, and a store
	$(VENV)/bin/python bench/run.py
	$(VENV)/bin/python bench/websocket.py
	$(VENV)/bin/python bench/admin.py
	$(VENV)/bin/python bench/state.py

clients: $(CLIENTS) ## the real clients that `make test` drives: 900 MB from npm and PyPI

clean: ## remove the files of the other targets
	rm -rf $(VENV) .e2e

# Rebuilt when the dependencies may have changed; `twistd --help` writes Twisted's plugin cache.
$(STAMP): setup.cfg pyproject.toml
	@echo "Setting up $(VENV); the first time this takes a minute."
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	$(VENV)/bin/twistd --help >/dev/null
	touch $@

# A separate environment: the clients' dependencies must not mix with the gateway's.
$(CLIENTS): $(PINS)/package.json $(PINS)/requirements.txt
	mkdir -p .e2e/node
	cp $(PINS)/package.json .e2e/node/
	npm install --prefix .e2e/node --no-audit --no-fund --no-package-lock --no-update-notifier
	$(PYTHON) -m venv .e2e/python
	.e2e/python/bin/python -m pip install --quiet --disable-pip-version-check \
		-r $(PINS)/requirements.txt
	touch $@
