# How to build, run and check llmio-probe from a clone. `make` alone lists the targets.
#
# Everything Python lives in .venv. What a step made is its own stamp, so that a second `make setup` does nothing.

PYTHON ?= python3
PIP_INSTALL := .venv/bin/pip install -qq --disable-pip-version-check -c tests/requirements.txt
PACKAGES := deploy/packages
# For make install: where to, and what is in front of every name (deploy/install.sh).
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
INTERPRETER ?= $(shell .venv/bin/python -c 'import os, sys; print(os.path.realpath(sys.executable))' 2>/dev/null)
PIP_FLAGS ?=
# For make test: more arguments to pytest.
PYTEST_ARGS ?=
# For make test-vm: which kernels, as "5.10 6.1" (all, and then the table in docs/ is made anew), and more arguments.
KERNELS ?=
VM_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev packages packages-test packages-vm packages-frameworks objects run install uninstall \
	test test-matrix test-vm test-frameworks unit speed lint dashboards bench soak clean

help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: packages .venv/installed objects ## what building and running need, and .venv/bin/llmio-probe

setup-dev: packages-test .venv/installed-dev objects ## the same, and what the tests and checks need

run: setup ## watch a small offload-shaped workload (root)
	.venv/bin/llmio-probe demo

install: setup ## into PREFIX (/usr/local), below DESTDIR if given, with unit and configuration (root)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' INTERPRETER='$(INTERPRETER)' \
		PIP='$(PIP_INSTALL) --no-build-isolation $(PIP_FLAGS)' deploy/install.sh install

uninstall: ## take away all that install has put there, the configuration too (root)
	@DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' INTERPRETER= PIP= deploy/install.sh uninstall

test: setup-dev ## the whole test suite, live tests included (root)
	LLMIO_REQUIRE_LIVE=1 .venv/bin/python -m pytest tests/unit tests/speed tests/live --benchmark-disable $(PYTEST_ARGS)

test-matrix: setup-dev ## every known workload on every file system, of which `make test` takes a choice (root)
	LLMIO_REQUIRE_LIVE=1 LLMIO_MATRIX=full .venv/bin/python -m pytest tests/live/test_matrix.py $(PYTEST_ARGS)

test-vm: setup-dev packages-vm ## tests in guests with other kernels, in qemu; KERNELS="5.10 6.1" for some of them
	.venv/bin/python -m tests.vm test $(or $(KERNELS),--write docs/compatibility.md) $(VM_ARGS)

test-frameworks: setup-dev packages-frameworks ## DeepSpeed, FlexGen and others, the real ones, under the probe (root)
	.venv/bin/python -m tests.frameworks.environment
	LLMIO_REQUIRE_LIVE=1 .venv/bin/python -m pytest tests/frameworks $(PYTEST_ARGS)

unit: setup-dev ## the tests that need no root
	.venv/bin/python -m pytest tests/unit tests/speed --benchmark-disable $(PYTEST_ARGS)

speed: setup-dev ## measure how fast user space is, from a batch made by hand
	.venv/bin/python -m pytest tests/speed

lint: setup-dev ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy --python-version 3.11 -p grafana

dashboards: setup-dev ## write grafana/dashboards/*.json anew, from the code beside them
	.venv/bin/python -m grafana

bench: setup-dev ## measure what it costs, beside other tools; writes docs/bench.md (root)
	.venv/bin/python -m tests.bench

soak: setup-dev ## the daemon for an hour under load that comes and goes; MINUTES=1 for a short one (root)
	.venv/bin/python -m tests.soak $(or $(MINUTES),60)

clean: ## remove everything that was built here
	@$(MAKE) --no-print-directory -C bpf clean
	rm -rf .venv dist .mypy_cache .pytest_cache .ruff_cache .ci/out
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Asking dpkg takes 20 ms, and a stamp would not notice that a package has gone.
packages:
	@$(PACKAGES)/install.sh $(PACKAGES)/debian-build.txt $(PACKAGES)/debian-run.txt

packages-test:
	@$(PACKAGES)/install.sh $(PACKAGES)/debian-build.txt $(PACKAGES)/debian-run.txt $(PACKAGES)/debian-test.txt

packages-vm:
	@$(PACKAGES)/install.sh $(PACKAGES)/debian-vm.txt

packages-frameworks:
	@$(PACKAGES)/install.sh $(PACKAGES)/debian-frameworks.txt

# Their Makefile knows what is up to date.
objects: | packages
	@$(MAKE) --no-print-directory -C bpf all

.venv/created: | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "llmio-probe needs Python 3.10 or newer: run make PYTHON=/path/to/one" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

# An editable install: what follows a change here is only the metadata and the entry point. It builds with the pinned
# hatchling in .venv, not in an environment of its own. The objects come first, because hatchling compiles them too.
.venv/installed: .venv/created pyproject.toml tests/requirements.txt | objects
	$(PIP_INSTALL) hatchling editables
	$(PIP_INSTALL) --no-build-isolation -e .
	@touch $@

.venv/installed-dev: .venv/created pyproject.toml tests/requirements.txt | packages-test objects
	$(PIP_INSTALL) hatchling editables
	$(PIP_INSTALL) --no-build-isolation -e '.[dev]'
	@touch .venv/installed $@
