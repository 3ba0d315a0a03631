# Two commands carry everything: `make demo` and `make test`. Both set themselves up; they need Python >= 3.11, make and git.
PYTHON ?= python3
VENV ?= .venv
# Where pip looks for torch beside PyPI; for a small CPU build: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
DATA ?= ../shared/data/cifar10
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
       $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help venv demo demo-molecules test test-slow lint docs bench audit chromium clean

help:
	@echo "make demo | demo-molecules | test | test-slow | lint | docs | bench | audit | venv | clean"

$(VENV)/core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unbackdoor needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/molecules: $(VENV)/core
	$(PIP) -e '.[molecules]'
	@touch $@

$(VENV)/docs: $(VENV)/core
	$(PIP) -e '.[docs]'
	@touch $@

venv: $(VENV)/dev

demo: $(VENV)/core
	$(BIN)/unbackdoor demo

demo-molecules: $(VENV)/molecules
	$(BIN)/unbackdoor molecules demo

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Where Chromium is missing and this machine allows, install Debian's; otherwise the browser tests skip and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    apt-get update -qq >/dev/null 2>&1 && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1; } || \
	  echo "no Chromium here: the browser tests will be skipped"

# One process a core, one thread each: small networks gain little from a second thread. A file stays in one process, as
# its tests share models that they train once. Tests marked slow follow where the others took less than nine minutes, as
# CI has twenty; `make test-slow` runs them whatever the time.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

test: lint chromium
	@started=$$(date +%s); $(PYTEST) -m "not slow" || exit; \
	if [ $$(($$(date +%s) - started)) -lt 540 ]; then $(PYTEST) -m slow; \
	else echo "this machine is slow: tests marked slow were left out; run them with make test-slow"; fi

test-slow: $(VENV)/dev
	$(PYTEST) -m slow

docs: $(VENV)/docs
	$(BIN)/python docs/make_pictures.py
	$(BIN)/mkdocs build --strict

bench: $(VENV)/core
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/main_job.py --data $(DATA)

audit: $(VENV)/dev
	$(BIN)/pip-audit --local

clean:
	rm -rf $(VENV) build site .mypy_cache .ruff_cache .pytest_cache
