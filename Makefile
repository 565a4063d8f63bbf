# All set-up is in the stamp: the first target of the day makes .venv, later ones start at once.
# Works with GNU make 3.81 (macOS). PYTHON=/path/to/python3 chooses the interpreter, ARGS=... adds arguments,
# JOBS=1 runs the tests one after the other (each worker starts a stack of its own).

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VENV := $(VENV)/uv
UV := $(UV_VENV)/bin/uv
ARGS ?=
JOBS ?= 2
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command "make lock" --extra local --extra dev pyproject.toml

.PHONY: help demo test check check-deep fuzz chaos chaos-kills chaos-zombies chaos-storms chaos-stores rolling defects interop lint format types imports docs bench lock lock-check build clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1	\2/p' Makefile | expand -t 14

$(STAMP): requirements.lock pyproject.toml .ci/venv
	@PYTHON="$(PYTHON)" sh .ci/venv
	@touch $@

demo: $(STAMP) ## run the whole pipeline on this machine and report deadlines met and missed
	$(BIN)/laxity demo $(ARGS)

test: $(STAMP) ## all tests but the slow ones; starts Kafka, registry and Redis for them
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

check: lint types imports test ## everything a change must pass

check-deep: $(STAMP) ## also the slow tests, with more seeds
	LAXITY_CRASH_SEEDS=2000 $(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

fuzz: $(STAMP) ## a million mutated payloads through all decoders (about 10 min)
	PYTHONPATH=tests $(BIN)/python tests/hostile/fuzz.py $(ARGS)

chaos: $(STAMP) ## the four chaos suites in a row, one table (up to 100 min; ARGS="--seed 7 --json FILE")
	PYTHONPATH=tests $(BIN)/python -m chaos.together $(ARGS)

chaos-kills: $(STAMP) ## kill -9 at every crash point and at any time, over all processes, under 5,000 tasks (20 to 25 min)
	PYTHONPATH=tests $(BIN)/python -m chaos.kills $(ARGS)

chaos-zombies: $(STAMP) ## processes that stop and come back, transactions that end late (up to 25 min)
	PYTHONPATH=tests $(BIN)/python -m chaos.zombies $(ARGS)

chaos-storms: $(STAMP) ## rebalances, partitions, three brokers that die in turn (up to 25 min)
	PYTHONPATH=tests $(BIN)/python -m chaos.storms $(ARGS)

rolling: $(STAMP) ## schedulers of an earlier revision replaced one by one under load (3 min; ARGS="--from REV")
	PYTHONPATH=tests $(BIN)/python -m chaos.rolling $(ARGS)

chaos-stores: $(STAMP) ## Redis, state directories and the broker's log lost, full, frozen, stale, rotten (20 to 25 min; Linux)
	PYTHONPATH=tests $(BIN)/python -m chaos.stores $(ARGS)

defects: $(STAMP) ## plant each defect of the catalogue, alone: the tests must find it (about 5 min)
	PYTHONPATH=tests $(BIN)/python tests/defects/run.py $(ARGS)

interop: $(STAMP) ## clients that are not ours read and write every topic (needs Node, npm, a JDK, Maven; 2 to 8 min)
	@PYTHONPATH=tests $(BIN)/python tests/interop/tools.py
	$(BIN)/python -m pytest tests/interop/clients.py $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put the format right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy -p laxity
	$(BIN)/mypy tests

imports: $(STAMP) ## which folder may import which
	$(BIN)/lint-imports

docs: $(STAMP) ## write the pages of docs/ that are made from the code
	$(BIN)/python -m laxity.infra.docs

bench: $(STAMP) ## measurements; prints figures, judges nothing
	$(BIN)/python -m pytest tests/bench -m "slow or not slow" -s $(ARGS)

$(UV): $(STAMP)
	@$(BIN)/python -m venv --clear $(UV_VENV)
	@$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv

lock: $(UV) ## resolve again: Python packages and Java artifacts (ARGS=--upgrade for newer packages)
	$(COMPILE) $(ARGS) -o requirements.lock
	$(BIN)/python -m laxity.infra.local.lock_jars

lock-check: $(UV) ## the lock fits pyproject.toml, and has wheels for every Python and platform we name
	@cp requirements.lock $(UV_VENV)/requirements.lock
	$(COMPILE) -o $(UV_VENV)/requirements.lock
	diff requirements.lock $(UV_VENV)/requirements.lock
	@for version in 3.11 3.12 3.13 3.14; do \
		for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 x86_64-apple-darwin aarch64-apple-darwin; do \
			echo "wheels for $$version on $$platform"; \
			$(UV) pip compile --quiet --no-deps --only-binary :all: --python-version $$version \
				--python-platform $$platform requirements.lock -o $(UV_VENV)/wheels.txt || exit 1; \
		done; \
	done

build: $(STAMP) ## sdist and wheel in dist/
	$(BIN)/python -m build

clean: ## remove the environment and all caches; data in .laxity stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
