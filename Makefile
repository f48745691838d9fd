# Every target makes what it needs by itself, in .venv, from nothing but make and Python 3.11 or newer:
#   make test PYTHON=python3.13 VENV=.venv-3.13 ARGS='-k proxy'

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# So many tests at once: most of them wait.
WORKERS ?= 4
N ?= 20
MINUTES ?= 10

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DRIVERS := aiosqlite,asyncpg,httpx,httpx2,opentelemetry,prometheus,psycopg,redis,requests,testing,top,trio,urllib3,web
PROGRAMS := pgbouncer=pgbouncer chromium=chromium chromedriver=chromium-driver mariadbd=mariadb-server-core my_print_defaults=mariadb-client-core
CODE := $(wildcard src tests benchmarks demo docs examples proof)

.PHONY: demo test pytest steady covered lint types measure bench proof atlas soak clean

demo: $(VENV)/.demo
	$(BIN)/python -B -m demo $(if $(WATCH),--watch)

test: $(VENV)/.test pytest

# The tests, in an environment that is there.
pytest:
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# The tests N times, while something else keeps every core busy; lists each test that failed once, and why
steady: $(VENV)/.test
	$(BIN)/python -m tests.steady $(N) -- --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# Every branch of the core, which decides, is run by one of its own tests. The others are not traced: they measure times,
# and let exceptions strike anywhere, also within a tracer that is not made for it.
covered: $(VENV)/.test
	$(BIN)/python -m coverage run -m pytest --quiet tests/core
	$(BIN)/python -m coverage report --include='*/millpond/_core/*' --fail-under=100

lint: $(VENV)/.checks
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(VENV)/.checks
	$(BIN)/mypy $(CODE)
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=src PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pyright --verifytypes millpond --ignoreexternal

# Prints what is measured beside its goal, and fails if something falls short: make measure ARGS='crowd --markdown'
measure: $(VENV)/.test
	$(BIN)/python -m benchmarks $(ARGS)

# millpond and its peers do the same work, and docs/benchmarks is written: make bench ARGS='one-thread --quick'
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.rows $(ARGS)

# Tries everything within stated bounds, and prints the way to whatever breaks a law: make proof ARGS='core line hot'
proof: $(VENV)/.test
	$(BIN)/python -m proof $(ARGS)

# The part of it that strikes servers and networks, with all peers; docs/atlas.md is written
atlas: $(VENV)/.bench
	$(BIN)/python -m proof atlas --page docs/atlas.md $(ARGS)

# Threads and tasks borrow for so long, with a fault every second, and nothing may be lost; ARGS=--servers has them use
# real servers: make soak MINUTES=10
soak: $(VENV)/.test
	$(BIN)/python -m proof soak --minutes $(MINUTES) $(ARGS)

clean:
	rm -rf .venv* build dist .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "millpond needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.pip
	$(PIP) install --editable '.[demo,web]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.pip
	tests/debian $(PROGRAMS)
	$(PIP) install --editable '.[$(DRIVERS)]' --group test --group browser
	@touch $@

$(VENV)/.bench: pyproject.toml $(VENV)/.test
	$(PIP) install --group bench
	@touch $@

$(VENV)/.checks: pyproject.toml $(VENV)/.test $(VENV)/.demo $(VENV)/.bench
	$(PIP) install --group lint --group types
	@touch $@
