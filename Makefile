# Every target that needs it installs by itself. Variables can be given on the line: make record DATA_DIR=/data
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3 # the interpreter that .venv is made from (3.11 or newer)
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
ARGS ?= # more flags for the program, for example ARGS="--for 60"
Q ?= SELECT instrument, count(*) AS quotes FROM eth_option_quotes GROUP BY ALL ORDER BY quotes DESC LIMIT 10

##@ Use
.PHONY: help install demo chaos soak record load replay audit archive prune status sql notebook completeness report doctor simulate
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "; printf "make TARGET\n"} /^[a-z-]+:.*## / {printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2} /^##@ / {printf "\n%s\n", substr($$0, 5)}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with everything needed (the other targets do it by themselves)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP) ## The whole chain offline in under 60 s: simulate, record, load, query, prove
	$(PY) -m tests.demo

chaos: $(STAMP) ## The whole chain under random faults, then one verdict (MINUTES=5 SEED=…)
	$(PY) -m tests.chaos --minutes $(or $(MINUTES),5) $(if $(SEED),--seed $(SEED))

soak: $(STAMP) ## Everything at full chain for an hour, then its graphs and one verdict (MINUTES=60; needs prometheus)
	$(PY) -m tests.soak --minutes $(or $(MINUTES),60) $(ARGS)

record: $(STAMP) ## Record until Ctrl-C (ARGS="--for 60" to stop by itself)
	$(PY) -m recorder record $(ARGS)

load: $(STAMP) ## Load finished segments into DATABASE_URL (ARGS="--once" to stop when all is loaded)
	$(PY) -m loader load $(ARGS)

replay: $(STAMP) ## Load a time range into another database (ARGS="--from 2026-11-01 --to 2026-11-02")
	$(PY) -m loader replay $(ARGS)

audit: $(STAMP) ## Compare the database with the tape (ARGS="--repair" to reload what differs)
	$(PY) -m loader audit $(ARGS)

archive: $(STAMP) ## Write finished days as Parquet to ARCHIVE_URL (make load does it daily; ARGS="--today" for all)
	$(PY) -m loader archive $(ARGS)

prune: $(STAMP) ## Remove segments that the archive holds (ARGS="--keep 14 --dry-run")
	$(PY) -m loader prune $(ARGS)

status: $(STAMP) ## Show how recorder, loader, and tape are doing, live (ARGS="--once", ARGS="--json")
	@$(PY) -m recorder status $(ARGS)

sql: $(STAMP) ## Query the tape, live rows included: make sql Q="SELECT …"
	@$(PY) -m analysis sql "$(Q)" $(ARGS)

notebook: $(STAMP) ## Look at the tape in a browser, as tables and charts (ARGS="--port 2718 --headless")
	MARIMO_SKIP_UPDATE_CHECK=1 $(PY) -m marimo edit analysis/notebook.py $(ARGS)

completeness: $(STAMP) ## Prove what the tape holds (ARGS="--from T --to T --min-coverage 0.98")
	@$(PY) -m analysis completeness $(ARGS)

report: $(STAMP) ## A page about the tape that opens offline (ARGS="--out report.html --from T --to T")
	@$(PY) -m analysis report $(ARGS)

doctor: $(STAMP) ## Check every segment (ARGS="--repair" to salvage)
	@$(PY) -m recorder doctor $(ARGS)

simulate: $(STAMP) ## Be a Deribit look-alike on port 8765
	$(PY) -m recorder simulate $(ARGS)

##@ Develop
.PHONY: test lint types check fmt bench lock clean
test: $(STAMP) ## All tests
	$(PY) -m pytest --numprocesses 3 --dist worksteal $(ARGS)

lint: $(STAMP) ## Style
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m marimo check --strict analysis/notebook.py

types: $(STAMP) ## Types
	$(PY) -m mypy

check: lint types test ## Lint, types, tests: what CI runs

fmt: $(STAMP) ## Format, and mend what can be mended
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## Benchmarks, as JSON on stdout
	@$(PY) -m tests.bench $(ARGS)

lock: $(STAMP) ## Renew requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate -o requirements.lock

clean: ## Remove what make install and the tests made; never data/
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

##@ Containers
.PHONY: env up down logs
env: ## Make .env with random passwords, unless there is one
	@$(PYTHON) deploy/make_env.py

up: ## Start database, recorder, and loader (ARGS="--profile monitoring" for Grafana, too)
	docker compose $(ARGS) up -d --build

down: ## Stop all of it; the data stays
	docker compose --profile '*' down

logs: ## Follow what they say
	docker compose logs -f --tail 50

##@ Services
.PHONY: install-service uninstall-service
PREFIX ?= /opt/ticktape# where install-service puts the programs
install-service: ## Install recorder and loader as systemd services (needs root)
	PYTHON=$(PYTHON) deploy/systemd/install $(PREFIX)

uninstall-service: ## Stop and remove them; tape and settings stay
	deploy/systemd/uninstall $(PREFIX)
