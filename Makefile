# Two commands: `make` maps the demo cities, `make test` tests them, `make test-all` with the slow tests. `make docs` builds the site, `make lock` renews the lock files.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: run test test-all lint docs lock clean
run: .venv/installed .dvc/config.local
	dvc repro report
	python -m pipeline summary

# A process a core, one thread each: two that share a core would wait for each other. One that has nothing left takes
# half of what another has, in its order: whole files would end with the slowest, a core idle.
TESTS = OMP_NUM_THREADS=1 pytest --numprocesses auto --dist worksteal
test: .venv/installed-test .dvc/config.local
	$(TESTS) -m "not slow"

test-all: .venv/installed-test .dvc/config.local
	$(TESTS)

lint: .venv/installed-test
	ruff check pipeline tests benchmarks
	ruff format --check pipeline tests benchmarks
	ty check --error-on-warning pipeline

# Every page and every parameter as a static site: open site/index.html.
docs: .venv/installed-test
	python -m pipeline parameters > docs/parameters.md
	python -m pipeline metrics > docs/metrics.md
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=python3.12") if not (3, 11) <= sys.version_info < (3, 14) else None'
	$(PYTHON) -m venv .venv

.venv/installed: requirements/run.txt pyproject.toml | .venv/bin/python
	pip install --quiet --require-hashes --requirement requirements/run.txt
	pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-test: requirements/test.txt .venv/installed
	pip install --quiet --require-hashes --requirement requirements/test.txt
	@touch $@

# DVC works without git only when told so; the answer is this machine's, not the project's.
.dvc/config.local: | .venv/installed
	@touch $@
	@git rev-parse --show-toplevel 2>/dev/null | grep -qx '$(CURDIR)' || dvc config --local core.no_scm true

# uv resolves for every platform and Python at once; the files carry versions and hashes, no addresses.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --constraint requirements/constraints.txt pyproject.toml --output-file requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --constraint requirements/run.txt --extra test pyproject.toml --output-file requirements/test.txt

clean:
	rm -rf .venv .dvc/config.local .dvc/cache .dvc/tmp data/checked.txt data/swept.txt data/watched data/scenes data/tiles models arrays figures report .work
