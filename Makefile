# Thin on purpose: every step, message and check is in core/bootstrap.py.
PYTHON ?= python3
PORT ?= 8501
DEVICE ?= auto
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run setup llamacpp test lint clean python

help:
	@echo "make run    [PORT=8501] [DEVICE=auto|cpu|gpu]   set up what is missing and start the workbench"
	@echo "make setup  [DEVICE=auto|cpu|gpu]               set up only"
	@echo "make llamacpp                                   build llama.cpp too, for GGUF files (needs a C++ compiler)"
	@echo "make test   [ARGS='-k chat']                    set up, with test tools and a browser, and run the tests"
	@echo "make lint                                       check style with ruff"
	@echo "make clean                                      remove .venv, logs and caches (never the workspace)"
	@echo "PYTHON=python3.12 with any of them chooses the Python; 3.11 or newer."

python:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON) here. Install Python 3.11 or newer (apt install python3 python3-venv), or name one: make run PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1), and the workbench needs 3.11 or newer. Install one and name it: make run PYTHON=python3.12" >&2; exit 1; }

run: python
	@exec $(PYTHON) -m core.bootstrap run --port $(PORT) --device $(DEVICE)

setup: python
	@exec $(PYTHON) -m core.bootstrap setup --device $(DEVICE)

llamacpp: python
	@exec $(PYTHON) -m core.bootstrap llamacpp --device $(DEVICE)

test: python
	@exec $(PYTHON) -m core.bootstrap test --device $(DEVICE) -- $(ARGS)

lint: python
	@exec $(PYTHON) -m core.bootstrap lint --device $(DEVICE)

clean:
	rm -rf .venv build .pytest_cache .ruff_cache .hypothesis
