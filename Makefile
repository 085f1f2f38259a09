# Everything runs from here. Needed beforehand: Python 3.11 or newer, and make.
# All packages go into .venv, at the versions and hashes of requirements.lock.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python …` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)
BIN := .venv/bin
READY := .venv/.darkroom-ready
# Where this machine keeps certificates of its own, uv trusts them as pip does.
UV := $(BIN)/uv $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),--system-certs)

# A process that may not keep what it compiled compiles PyTorch each time it starts: some containers
# set this, and every test that starts a worker would wait for it.
unexport PYTHONDONTWRITEBYTECODE

# Two runs side by side, each on parts of its own. A file's tests stay together, and the long files
# come first, as they stand in the tree.
BESIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Recognising: an architecture of torchvision and its weights, for `make demo-photos`.
ARCH ?= squeezenet1_0

.PHONY: help
help: ## List what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

.PHONY: demo
demo: $(READY) ## Train on handwritten digits, recognise the rest, export; offline, real parts
	@$(BIN)/darkroom demo

.PHONY: demo-photos
demo-photos: $(READY) ## Recognise PHOTOS=zip with WEIGHTS=safetensors [ARCH=squeezenet1_0]
	@test -n "$(PHOTOS)" -a -n "$(WEIGHTS)" \
		|| { echo 'say which: make demo-photos PHOTOS=photos.zip WEIGHTS=weights.safetensors' >&2; exit 2; }
	@$(BIN)/darkroom demo-photos --photos "$(PHOTOS)" --weights "$(WEIGHTS)" --arch "$(ARCH)"

.PHONY: up
up: $(READY) ## Start the whole service on this machine
	@$(BIN)/darkroom up

.PHONY: check
check: $(READY) ## Style, types, import directions, tables against migrations
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.architecture.check_migrations

.PHONY: test
test: check ## check, then every test
	$(BIN)/python -m pytest $(BESIDE)

.PHONY: faults
faults: $(READY) ## Break everything under load and prove that nothing is lost [SEED= ONLY= QUICK=1]
	@$(BIN)/python -m tests.faults.run $(if $(SEED),--seed "$(SEED)") $(if $(ONLY),--only "$(ONLY)") \
		$(if $(QUICK),--quick)

.PHONY: bench
bench: $(READY) ## Measure; ONLY= names one of tests/bench: api, audit, cifar, decode, learn, load, scale, sealed
	@test -n "$(ONLY)" || { echo 'say which: make bench ONLY=scale' >&2; exit 2; }
	@$(BIN)/python -m tests.bench.$(ONLY)

# Parts of the fuzz, each a module of tests/fuzz that ends with one line of figures.
FUZZ := games images archives api

.PHONY: fuzz
fuzz: $(READY) ## Attack with random input, part by part; ONLY= names one of tests/fuzz [SEED= EXAMPLES=]
	@for part in $(or $(ONLY),$(FUZZ)); do \
		$(BIN)/python -m tests.fuzz.$$part $(if $(SEED),--seed "$(SEED)") \
			$(if $(EXAMPLES),--examples "$(EXAMPLES)"); \
	done

.PHONY: audit
audit: $(READY) ## Ask PyPI for known vulnerabilities of every locked package
	$(BIN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock -r deploy/bootstrap.lock

.PHONY: sbom
sbom: $(READY) ## Write what each lock file installs to dist, as CycloneDX
	@$(BIN)/python deploy/sbom.py deploy/api.lock deploy/worker.lock requirements.lock

.PHONY: lock
lock: $(READY) ## Resolve all dependencies again and write the lock files
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--all-extras -o requirements.lock pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--constraint requirements.lock -o deploy/api.lock pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--constraint requirements.lock --extra worker -o deploy/worker.lock pyproject.toml
	$(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		-o deploy/bootstrap.lock deploy/bootstrap.in

.PHONY: install
install: $(READY) ## Make .venv

# The last file written, so that an installation that was broken off is done again.
$(READY): requirements.lock deploy/bootstrap.lock pyproject.toml
	@test -n "$(PYTHON)" \
		|| { echo 'Darkroom needs Python 3.11 or newer; name one: make PYTHON=/path/to/python' >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'installing the locked packages into .venv; the first time takes minutes'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/bootstrap.lock
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock deploy/bootstrap.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
