# What a developer runs; `make help` lists it. A fresh machine needs GNU make, Python 3.11 or newer
# and PyPI: each target makes the virtual environment it uses, and makes it again when
# pyproject.toml has changed.

DIR    ?=
CHAOS  ?=
N      ?= 200
SEED   ?=
ARGS   ?=
PYTHON ?=

RUN      := .venv/bin/python
PACKAGES := protocol/qprotocol client/qclient worker/qworker server/qbroker
TYPING   := $(wildcard tests/typing/*.py)
PURE     := tests/wire tests/core tests/scenarios tests/log

.DEFAULT_GOAL := help
.PHONY: help demo test test-services check format lint types coverage generated bench bench-storage bench-lanes crash simulate planted rewrite docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

demo: export QDEMO_DIR = $(DIR)
demo: export QDEMO_CHAOS = $(CHAOS)
demo: .venv-demo/installed ## see it work; DIR=folder indexes that, CHAOS=1 kills the broker halfway
	@exec .venv-demo/bin/python bench/demo/main.py

test: .venv/installed ## the tests, less the slow ones; ARGS="-k word" for some
	@$(RUN) -m pytest -q -n 2 -m "not slow and not services" tests $(ARGS)

test-services: .venv/installed ## the tests that need Debian packages: strace
	@command -v strace >/dev/null || { echo "strace is not installed: apt install strace" >&2; exit 1; }
	@$(RUN) -m pytest -q -m services tests $(ARGS)

check: format lint types coverage generated ## what CI asks besides the tests

bench: .venv/installed ## the figures, compared; see bench/README.md; ARGS="--quick" to try it
	@$(RUN) bench/run.py $(ARGS)

bench-storage: .venv/installed ## the figures of storage: deep queues, starts, disk; ARGS as for bench
	@$(RUN) bench/run.py --group storage $(ARGS)

bench-lanes: .venv/installed ## what limits, keys and many queues cost; ARGS as for bench
	@$(RUN) bench/run.py --group lanes $(ARGS)

crash: .venv/installed ## kill the broker N=200 times under load, and count messages
	@$(RUN) tests/e2e/crash.py --cycles $(N) $(ARGS)

simulate: .venv/installed ## N=200 seeds of the broker in a simulated machine; SEED=17 tells one again
	@PYTHONPATH=tests $(RUN) -m sim $(if $(SEED),--seed $(SEED),$(N)) $(ARGS)

planted: .venv/installed ## plant bugs one by one, and see the simulation find each; ARGS=word for some
	@PYTHONPATH=tests $(RUN) -m sim.planted $(ARGS)

rewrite: .venv/installed ## write what happens now into the scenarios; then read the diff
	@$(RUN) -m pytest -q -k scenario --rewrite tests $(ARGS)
	@git --no-pager diff --stat -- tests/scenarios

docs: .venv/installed ## write the generated tables again
	@$(RUN) -m qprotocol.tables
	@.venv/bin/qbroker tables server/README.md
	@.venv/bin/qbroker tables server/COMMANDS.md

clean: ## remove what make and the tools have made here
	rm -rf .venv .venv-demo .venv-bench build dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find protocol client worker server tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The parts of check, each of which can be run alone ------------------------------------

format: .venv/installed
	@echo "format"
	@$(RUN) -m ruff format --quiet --check .

lint: .venv/installed
	@echo "lint"
	@$(RUN) -m ruff check --quiet .

types: .venv/installed
	@echo "types"
	@$(RUN) -m mypy --strict $(PACKAGES) $(TYPING)
	@$(if $(TYPING),$(RUN) -m basedpyright --pythonpath $(RUN))

coverage: export HYPOTHESIS_PROFILE = ci
coverage: .venv/installed
	@echo "coverage"
	@$(RUN) -m coverage run -m pytest -q -m "not slow" $(PURE)
	@$(RUN) -m coverage report --fail-under=100

generated: .venv/installed
	@echo "generated tables"
	@$(RUN) -m qprotocol.tables --check
	@.venv/bin/qbroker tables --check server/README.md
	@.venv/bin/qbroker tables --check server/COMMANDS.md

# --- How --------------------------------------------------------------------------------------

# The first interpreter that is new enough and can make virtual environments; else "trouble: " and a
# sentence. Looked for only when it is needed, and once.
interpreter = $(eval interpreter := $$(shell $(value find_interpreter)))$(interpreter)
find_interpreter = \
	given='$(PYTHON)'; old=; bare=; \
	if [ -n "$$given" ]; then set -- "$$given"; \
	else set -- python3 python3.14 python3.13 python3.12 python3.11; fi; \
	for each in "$$@"; do \
		version=$$("$$each" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { old=$${old:-$$version}; continue; }; \
		"$$each" -c 'import ensurepip, venv' 2>/dev/null || { bare=$${bare:-$$version}; continue; }; \
		echo "$$each"; exit; \
	done; \
	if [ -n "$$bare" ]; then \
		echo "trouble: Python $$bare has no venv module: install it (on Debian and Ubuntu: apt install python$$bare-venv), or name another Python with make PYTHON=/path/to/python3"; \
	elif [ -n "$$old" ]; then \
		echo "trouble: Python $$old is too old: install Python 3.11 or newer, or name one with make PYTHON=/path/to/python3"; \
	elif [ -n "$$given" ]; then \
		echo "trouble: $$given does not run: name a Python 3.11 or newer with make PYTHON=/path/to/python3"; \
	else \
		echo "trouble: there is no Python here: install Python 3.11 or newer, or name one with make PYTHON=/path/to/python3"; \
	fi

# $(call install,folder,extra): the tree with one of its extras, in a virtual environment of its own.
# An environment that works is kept. pip is heard only when it fails.
define install
$(if $(findstring trouble: ,$(interpreter)),$(error $(subst trouble: ,,$(interpreter))))
@echo "installing into $(1) ..."
@"$(1)/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	|| said=$$("$(interpreter)" -m venv --clear $(1) 2>&1) \
	|| { echo "cannot make $(1): $$(echo "$$said" | tail -n 1)" >&2; exit 1; }
@said=$$(PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/python -m pip install -q -e '.[$(2)]' 2>&1) \
	|| { echo "$$said" > $(1)/pip.log; \
	echo "cannot install: $$(echo "$$said" | grep -o 'ERROR.*' | tail -n 1); all of it is in $(1)/pip.log" >&2; exit 1; }
@touch $@
endef

.venv/installed: pyproject.toml
	$(call install,.venv,dev)

.venv-demo/installed: pyproject.toml
	$(call install,.venv-demo,all)
