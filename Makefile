# `make demo` and `make test` are all that a newcomer needs. Both can be run again at no cost.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
TORCH := torch==2.13.0
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

RUST_SOURCES := $(shell find rust_core benches/rust -name '*.rs' -o -name 'Cargo.toml' 2>/dev/null | grep -v '/target/') Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python/tiermem -type f -not -path '*/__pycache__/*') pyproject.toml

.PHONY: help demo test setup wheel peers clean

help:
	@echo "make demo   set up, build in release mode, install, run the demo on real data"
	@echo "make test   set up and run every check"
	@echo "make setup  create .venv with everything that development needs"
	@echo "make wheel  build the wheel and install it into .venv"
	@echo "make peers  create .venv-peers with the wheel, PyTorch and FBGEMM, for compare_peers.py and compare_serving.py"
	@echo "make clean  remove build products (.venv, dist, target)"

# uv shares its cache between environments, so that the 5 GB of PyTorch's default wheel arrive once.
$(VENV)/.set-up: pyproject.toml Makefile
	@echo "==> setting up $(VENV): PyTorch and the tools (the first time this downloads PyTorch's CUDA build, 5 GB installed)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH) "maturin>=1.10,<2"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --group dev
	@touch $@

setup: $(VENV)/.set-up

# The wheel, not the tree, is what the demo and the tests import.
$(VENV)/.installed: $(VENV)/.set-up $(RUST_SOURCES) $(PYTHON_SOURCES)
	@echo "==> building the extension in release mode"
	@rm -rf dist
	$(BIN)/maturin build --release --locked --quiet --out dist --interpreter $(BIN)/python
	@echo "==> installing the wheel into $(VENV)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --reinstall-package tiermem "$$(ls dist/*.whl)[train,report,plan]" $(TORCH)
	@touch $@

wheel: $(VENV)/.installed

demo: $(VENV)/.installed
	@echo "==> running tiermem demo"
	$(BIN)/tiermem demo
	@echo "==> done: the report named above opens in a browser, without network"

# Apart from $(VENV), so that no check depends on FBGEMM. Its wheel names no PyTorch; it is built for this one.
$(PEERS)/.installed: $(VENV)/.installed
	@echo "==> setting up $(PEERS): the wheel beside PyTorch and FBGEMM"
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python "$$(ls dist/*.whl)[train]" $(TORCH)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps --group peers
	$(PEERS)/bin/python benches/python/compare_peers.py --check
	@touch $@

peers: $(PEERS)/.installed
	@echo "==> $(PEERS)/bin/python benches/python/compare_peers.py"

test: $(VENV)/.set-up
	@bash .ci/stages

clean:
	rm -rf $(VENV) $(PEERS) dist target
