# The first target that needs it makes .venv; later calls rebuild it only when the dependencies changed.

PYTHON ?= python3
EXTRAS := dev,atari,box2d,crafter,dmc,highway,minigrid,prodigy,tensorboard,tokenizers,video,wandb
READY := .venv/.ready

# A virtual environment knows its own path: one that was moved, copied or lost its Python is made anew.
INTACT := $(shell grep -sqF '$(CURDIR)/.venv' .venv/bin/activate && .venv/bin/python -c 'import pip' 2>/dev/null && echo yes)
ifneq ($(INTACT),yes)
.PHONY: $(READY)
endif

.PHONY: help train test check sanitize bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

train: $(READY)  ## train with the default configuration
	.venv/bin/python run_dreamer.py

test: $(READY)  ## run the fast tests
	.venv/bin/python -m pytest

check: $(READY)  ## check format, style and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/pyright

# Flags of the sanitizers follow those of the kernels. Reports go to the terminal, past what pytest keeps; the first one
# ends the run.
SANITIZED := sh -c "exec gcc \"$$@\" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" gcc
sanitize: $(READY)  ## run the tests of the native kernels with checks of memory and undefined behaviour (gcc)
	SANITIZED_CC='$(SANITIZED)' ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	.venv/bin/python -m pytest -n 0 --capture=sys tests/native

bench: $(READY)  ## measure learning and write benchmarks/results
	.venv/bin/python benchmarks/learning.py

clean:  ## remove .venv, .peers and every cache, but no run
	rm -rf .venv .peers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	$(if $(INTACT),,$(PYTHON) -m venv --clear .venv)
	.venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
