.DEFAULT_GOAL := help
.PHONY: help bench card families front real calibration bench-calibration llama.cpp programs bench-kernels bench-quantize build demo tables picture test test-fast test-elsewhere test-oracle fuzz check lint types layers fmt clean
SHELL := /bin/bash

VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
MODEL  ?= tests/data/novels-5m-f16.gguf
CACHE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tqgguf
RANDOM_MODEL := $(CACHE)/bench/random-0.5b-f16.gguf
CHUNKS ?= 16
FAST   := not oracle and not slow
PYTEST := $(BIN)/python -m pytest -q -n auto
# a real model and a text for it, or the embedded one where there is no network
REAL   := found=$$($(BIN)/python scripts/real_model.py --text) && { read -r model; read -r text; } <<< "$$found"
FILES  := --baselines Q4_0,Q4_K_M,Q3_K_M,Q2_K --types tq-q4,tq-q3,tq-q2

help:          ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z.-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed   ## quantize the embedded model, report its error, generate text from it
	@mkdir -p demo
	$(BIN)/tqgguf quantize $(MODEL) --type tq-q4 --force -o demo/novels-5m-TQ-Q4.gguf
	$(BIN)/tqgguf verify demo/novels-5m-TQ-Q4.gguf $(MODEL)
	$(BIN)/tqgguf report mse $(MODEL) --types Q4_K,Q3_K,Q2_K
	$(BIN)/python scripts/generate.py demo/novels-5m-TQ-Q4.gguf "The old man looked at the sea and"

test: $(VENV)/.installed   ## the whole suite (no network once installed)
	$(PYTEST)

test-fast: $(VENV)/.installed   ## for the inner loop: all but the tests marked slow or tools
	$(PYTEST) -m '$(FAST) and not tools'

test-elsewhere: $(VENV)/.installed   ## as on a machine without AVX-512, llama.cpp's programs and a cache; not the slow ones
	rm -rf build/elsewhere && mkdir -p build/elsewhere/bin
	OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="$$($(BIN)/python tests/processor.py)" \
	LLAMA_CPP_BIN=$(CURDIR)/build/elsewhere/bin XDG_CACHE_HOME=$(CURDIR)/build/elsewhere \
	    $(PYTEST) -m '$(FAST)'

bench: $(VENV)/.installed programs $(RANDOM_MODEL)   ## speed and quality, ours beside llama-quantize's, in llama.cpp
	PYTHON=$(BIN)/python scripts/bench_e2e.sh $(RANDOM_MODEL) $(FILES)
	$(REAL) && $(BIN)/tqgguf eval "$$model" $(FILES) --text "$$text" --chunks 16

front: $(VENV)/.installed programs $(RANDOM_MODEL)   ## which type buys which quality at which speed, here
	$(REAL) && $(BIN)/python scripts/measure_front.py $(RANDOM_MODEL) "$$model" "$$text" --chunks 4

real: $(VENV)/.installed programs   ## a real model: ours at every effort beside llama-quantize's mixtures
	model=$$($(BIN)/python scripts/real_model.py --required) && \
	    $(BIN)/python scripts/measure_real.py "$$model" tests/data/wiki-calib.txt tests/data/wiki-eval.txt

card: $(VENV)/.installed programs   ## docs/card-SmolLM2: the card of a ladder of a real model, made by the command
	model=$$($(BIN)/python scripts/real_model.py --required) && \
	    $(BIN)/tqgguf ladder "$$model" -o build/SmolLM2-135M-Instruct-GGUF --types tq-q2,tq-q3,tq-q4 \
	    --eval tests/data/wiki-eval.txt --chunks $(CHUNKS) --base-model HuggingFaceTB/SmolLM2-135M-Instruct
	mkdir -p docs/card-SmolLM2
	cp build/SmolLM2-135M-Instruct-GGUF/README.md build/SmolLM2-135M-Instruct-GGUF/front.svg \
	    build/SmolLM2-135M-Instruct-GGUF/SHA256SUMS docs/card-SmolLM2/

families: $(VENV)/.installed programs   ## two more real models: no option at all beside llama-quantize's Q4_K_M
	for release in gemma-3-270m Qwen2.5-Coder-0.5B-Instruct; do \
	    model=$$($(BIN)/python scripts/real_model.py --required --release $$release) && \
	    $(BIN)/python scripts/measure_real.py "$$model" tests/data/wiki-calib.txt tests/data/wiki-eval.txt \
	        --theirs Q4_K_M --ours tq-q4 --efforts good --targets "" --imatrix-chunks 8 --chunks 4 || exit 1; \
	done

calibration: $(VENV)/.installed programs   ## what --calibrate is worth, beside llama-quantize with an imatrix
	$(BIN)/python scripts/measure_calibration.py $(MODEL) tests/data/novels-calib.txt tests/data/novels-eval.txt

bench-calibration: $(VENV)/.installed programs   ## time, scaling and divergence of --calibrate beside llama-imatrix and llama-quantize
	model=$$($(BIN)/python scripts/real_model.py) && [ "$$model" = "$(CURDIR)/$(MODEL)" ] || \
	    $(BIN)/python scripts/bench_calibration.py "$$model" tests/data/wiki-calib.txt tests/data/wiki-eval.txt
	$(BIN)/python scripts/bench_calibration.py $(MODEL) tests/data/novels-calib.txt tests/data/novels-eval.txt

llama.cpp:     ## build llama.cpp's programs from PyPI's llama-cpp-python, once, into the user's cache
	scripts/build_llama_cpp.sh

programs:
	@[ -n "$$LLAMA_CPP_BIN" ] || command -v llama-bench >/dev/null || scripts/build_llama_cpp.sh

$(RANDOM_MODEL): scripts/make_synthetic_model.py | $(VENV)/.installed
	@mkdir -p $(@D)
	$(BIN)/python scripts/make_synthetic_model.py $@.partial && mv $@.partial $@

bench-kernels: $(VENV)/.installed   ## our encoders against ggml's, into docs/types.md: error and speed of every type
	PYTHONPATH=.:tests $(BIN)/python scripts/bench_kernels.py --write docs/types.md

test-oracle: $(VENV)/.oracle  ## folders against torch, transformers and llama.cpp's own converter
	@[ -n "$$TQGGUF_CONVERTER" ] || PYTHON=$(PYTHON) scripts/build_llama_cpp.sh converter >/dev/null
	$(BIN)/python -m pytest -q -m oracle tests/oracle

fuzz: $(VENV)/.installed   ## many more accidents and broken files than `make test` tries
	$(BIN)/python -m tests.fuzz 10000 1
	TQGGUF_KILLS=50 TQGGUF_MUTATIONS=2000 $(PYTEST) tests/output/test_resume.py \
	    tests/models/huggingface/test_mutations.py tests/models/huggingface/test_hyperparameters.py \
	    tests/models/huggingface/test_quantized.py

build: $(VENV)/.installed   ## wheel and source archive, tried in an environment with the core dependencies alone
	PYTHON=$(BIN)/python scripts/build.sh

bench-quantize: $(VENV)/.installed   ## whole runs against llama-quantize: time and memory
	$(BIN)/python scripts/bench_quantize.py $(BENCH)

check: lint types layers test   ## everything a change must pass; never edits

lint: $(VENV)/.installed   ## style, docstrings, shell
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/shellcheck scripts/*.sh .ci/run

types: $(VENV)/.installed  ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.installed ## imports only go down
	$(BIN)/lint-imports

tables: $(VENV)/.installed ## write the generated tables of docs
	$(BIN)/python scripts/write_tables.py

picture: $(VENV)/.installed ## draw docs/front.svg from the table of make real in docs/calibrate.md
	$(BIN)/python scripts/draw_table.py docs/calibrate.md docs/front.svg

fmt: $(VENV)/.installed    ## fix what can be fixed
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean:         ## remove everything that can be made again
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.oracle: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,oracle]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
