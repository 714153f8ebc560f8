.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
SCENARIO ?= default
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Ansible refuses to run without UTF-8, which a bare machine has not set.
export LC_ALL := C.UTF-8
export ANSIBLE_HOME := $(CURDIR)/.ansible

.PHONY: help
help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# What the throw-away hosts and some unit tests need of the distribution.
.PHONY: needs
needs:
	@testbed/install_needs.sh podman runc debootstrap debian-archive-keyring iptables netavark \
		aardvark-dns openssh-client gcc g++

.PHONY: venv
venv: $(VENV)/.installed ## Ansible and everything else from locked requirements, in .venv

$(VENV)/.installed: requirements.lock
	@testbed/install_needs.sh python3-venv
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip --quiet --disable-pip-version-check install --require-hashes \
		--requirement requirements.lock
	touch $@

.PHONY: demo
demo: needs $(VENV)/.installed ## a throw-away host served by llama.cpp, at the end an answer from the model
	$(BIN)/python -m testbed.demo up

.PHONY: demo-down
demo-down: $(VENV)/.installed ## remove the demo's host
	$(BIN)/python -m testbed.demo down

# Scenarios wait for their hosts most of the time: the other tests run meanwhile.
.PHONY: test
test: lint needs ## everything that CI runs
	$(MAKE) --jobs=2 molecule-all beside-molecule

.PHONY: beside-molecule
beside-molecule:
	$(MAKE) unit
	$(MAKE) wire
	$(MAKE) demo-test

.PHONY: lint
lint: $(VENV)/.installed ## style, types, Ansible, the collection's build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict .
	$(BIN)/ansible-lint --offline --strict
	$(BIN)/ansible-galaxy collection build --force --output-path dist collections/ansible_collections/kloros/llm

.PHONY: unit
unit: needs $(VENV)/.installed ## the core, the modules, the filters, modelctl, the stand-ins, and a short fuzz run
	$(BIN)/python -m pytest --numprocesses=auto -m "not llama_server" tests/unit tests/fuzz

# Of llama.cpp it needs a build: LLAMA_BIN=/opt/llama.cpp/current/bin, else one is made (ten minutes on two cores).
.PHONY: bench
bench: export PYTHONPATH := $(CURDIR)/collections
bench: needs $(VENV)/.installed ## downloads against curl, aria2 and hf; memory plan and gateway against llama.cpp
	@testbed/install_needs.sh aria2 curl cmake ninja-build
	$(BIN)/python -m testbed.fetch_inputs
	$(BIN)/python -m tests.bench.download
	bin=$${LLAMA_BIN:-$$($(BIN)/python -m testbed.llama_build)} && \
		$(BIN)/python -m tests.bench.memory --server "$$bin/llama-server" --fit-params "$$bin/llama-fit-params" && \
		$(BIN)/python -m tests.bench.gateway --server "$$bin/llama-server"

# Needs a build of llama.cpp as `bench` does; the small model comes with the testbed's inputs.
.PHONY: wire
wire: export PYTHONPATH := $(CURDIR)/collections
wire: needs $(VENV)/.installed ## the gateway asked as a recorded Ollama was, and under faults; all that asks a real llama-server
	@testbed/install_needs.sh curl cmake ninja-build
	$(BIN)/python -m testbed.fetch_inputs
	bin=$${LLAMA_BIN:-$$($(BIN)/python -m testbed.llama_build)} && export KLOROS_LLAMA_BIN="$$bin/llama-server" && \
		$(BIN)/python -m pytest tests/wire tests/faults && \
		$(BIN)/python -m pytest -m llama_server tests/unit

.PHONY: molecule
molecule: needs $(VENV)/.installed ## one scenario: make molecule SCENARIO=default
	$(BIN)/python -m testbed.molecule $(SCENARIO)

# The whole CUDA backend takes one and a half CPU-hours, so here a part of it is built.
.PHONY: molecule-all
molecule-all: needs $(VENV)/.installed
	KLOROS_CUDA_BUILD=part $(BIN)/python -m testbed.molecule --all

.PHONY: gpu-test
gpu-test: $(VENV)/.installed ## build for the GPUs of this machine, prove and measure; without one it says so
	$(BIN)/python -m pytest tests/gpu --capture=no

.PHONY: demo-test
demo-test: needs $(VENV)/.installed ## the demo as a new user runs it, twice
	$(BIN)/python -m pytest tests/demo

UV_LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header

.PHONY: lock
lock: ## write requirements.lock, the gateway's, and those of the CUDA toolkits anew
	$(UV_LOCK) --group dev --output-file requirements.lock
	$(UV_LOCK) --extra gateway --output-file requirements-gateway.lock pyproject.toml
	for wish in roles/llama_cpp/files/cuda_pypi/*.in; do \
		$(UV_LOCK) --output-file "$${wish%.in}.txt" "$$wish" || exit; \
	done

.PHONY: clean
clean: ## remove what was made here (the caches outside stay)
	rm -rf $(VENV) .ansible .testbed dist
