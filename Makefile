# temper. `make` sets up libtorch, builds the binaries and runs the quickstart pipeline; `make help` lists the targets.
#
# A pipeline is a file in pipelines/: one `$(call stage,NAME,INPUTS)` a stage. The stage's config is configs/NAME.toml
# (for another pipeline than the quickstart configs/PIPELINE/NAME.toml where there is one), its run directory runs/PIPELINE/NAME, and its
# manifest.json, which the stage writes last, is the file make tracks. A stage runs when its manifest is missing or
# older than its config, than a manifest it reads, or than any raw input its last manifest names.

ifeq ($(filter 4.% 5.%,$(MAKE_VERSION)),)
$(error GNU make 4 or later is needed and this is $(MAKE_VERSION); install it with: sudo apt-get install make)
endif

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

# What a person may set on the command line.
PIPELINE ?= quickstart
CONFIG   ?=
DEVICE   ?= auto
CUDA     ?=
MODEL    ?=
PROMPT   ?=
TARGET   ?= target
BENCH    ?=
TORTURE  ?=
FUZZ     ?=

BIN := $(TARGET)/release

# Settings of the caller's shell that would lead cargo to another libtorch, drop the run-time path to it, or put the
# binaries elsewhere. `make setup` reads LIBTORCH, and .cargo/config.toml names the place where it leaves the library.
LIBTORCH ?=
unexport LIBTORCH LIBTORCH_LIB LIBTORCH_INCLUDE LIBTORCH_USE_PYTORCH LIBTORCH_STATIC LIBTORCH_CXX11_ABI
unexport LIBTORCH_BYPASS_VERSION_CHECK RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CARGO_BUILD_TARGET
export CARGO_TARGET_DIR := $(abspath $(TARGET))

SETUP := LIBTORCH='$(LIBTORCH)' CUDA='$(CUDA)' scripts/setup

# --- pipelines ------------------------------------------------------------------------------------------------------

PIPELINES := $(patsubst pipelines/%.mk,%,$(wildcard pipelines/*.mk))
ifeq ($(filter $(PIPELINE),$(PIPELINES)),)
$(error there is no pipeline $(PIPELINE); PIPELINE is one of: $(PIPELINES))
endif

STAGES :=
config_dir := $(if $(filter quickstart,$(PIPELINE)),configs,configs/$(PIPELINE))
run_dir = runs/$(PIPELINE)/$(1)
manifest = $(call run_dir,$(1))/manifest.json
# The config file of a stage: CONFIG for the one stage named as a goal, the shipped one otherwise.
config = $(if $(and $(CONFIG),$(filter $(1),$(MAKECMDGOALS))),$(CONFIG),$(or $(wildcard $(config_dir)/$(1).toml),configs/$(1).toml))
# Where the config file's name was kept when the stage last ran; another name now means that the stage must run again.
config_record = $(call run_dir,$(1)).config
config_changed = $(filter-out $(config),$(file <$(config_record)))

# stage NAME,INPUTS[,BINARY [COMMAND]]: the rules of one stage. An input with a slash is a file, one without is a stage.
stage = $(eval $(call stage_rules,$(strip $(1)),$(strip $(2)),$(or $(strip $(3)),$(strip $(1)))))

define stage_rules
STAGES += $(1)
.PHONY: $(1)
$(1): $(call manifest,$(1))

$(call manifest,$(1)): $(foreach i,$(2),$(if $(findstring /,$(i)),$(i),$(call manifest,$(i)))) \
    $(config) $(if $(config_changed),FORCE) | build
	@scripts/run-stage '$(config)' '$(call run_dir,$(1))' '$(DEVICE)' $(BIN)/$(3)

-include $(call run_dir,$(1)).inputs.mk
endef

include pipelines/$(PIPELINE).mk

ifneq ($(CONFIG),)
ifneq ($(words $(filter $(STAGES),$(MAKECMDGOALS))),1)
$(error CONFIG replaces the config of one stage; name that stage, as in: make sft CONFIG=$(CONFIG))
endif
ifeq ($(wildcard $(CONFIG)),)
$(error CONFIG=$(CONFIG) does not exist)
endif
endif

# --- targets --------------------------------------------------------------------------------------------------------

.PHONY: all
all: $(STAGES) ## set up, build and run the whole pipeline (PIPELINE=name for another than quickstart)

.PHONY: FORCE
FORCE:

.PHONY: help
help: ## list the targets
	@awk 'match($$0, /^([a-z0-9-]+:|\$$\(call stage,[a-z0-9-]+).*## /) { \
	    name = $$0; sub(/^\$$\(call stage,/, "", name); sub(/[:,].*/, "", name); \
	    text = $$0; sub(/.*## /, "", text); printf "make %-11s %s\n", name, text }' \
	    Makefile pipelines/$(PIPELINE).mk

.PHONY: setup
setup: ## check the machine and fetch libtorch into .libtorch (CUDA=1: with CUDA; LIBTORCH=dir: use that one)
	@$(SETUP)

.PHONY: ready
ready:
	@$(SETUP) --quick

.PHONY: build
build: ready ## build every binary into target/release
	@cargo build --release --workspace --locked

.PHONY: test
test: build ## run all tests
	@scripts/browser --install >/dev/null
	@cargo test --release --workspace --locked

.PHONY: ci
ci: ready ## check the format, run clippy with warnings denied, then the tests
	@cargo fmt --all --check
	@cargo clippy --release --workspace --all-targets --locked -- -D warnings
	@$(MAKE) test

.PHONY: chat
chat: $(if $(MODEL),build,$(call manifest,$(chat.reads))) ## talk to the trained model (MODEL=dir for another, PROMPT=text for one answer)
	@$(BIN)/chat --model '$(or $(MODEL),$(call run_dir,$(chat.reads)))' --device '$(DEVICE)' \
	    $(if $(PROMPT),--prompt "$$CHAT_PROMPT")
chat: export CHAT_PROMPT = $(PROMPT)

.PHONY: serve
serve: $(if $(MODEL),build,$(call manifest,$(chat.reads))) ## serve the trained model over HTTP (MODEL=dir for another)
	@exec $(BIN)/chat serve --model '$(or $(MODEL),$(call run_dir,$(chat.reads)))' --device '$(DEVICE)'

.PHONY: parity
parity: build ## make the Hugging Face fixtures again and compare, in a Python venv of its own
	@scripts/parity/run

.PHONY: bench
bench: build ## measure speed and memory of our programs, about 10 minutes (BENCH=... for options of scripts/bench/run)
	@scripts/bench/run --device '$(if $(filter cuda%,$(DEVICE)),cuda,cpu)' $(BENCH)

.PHONY: bench-peers
bench-peers: build ## the same beside transformers, TRL and datasets, in a Python venv of its own
	@scripts/bench/run --peers --device '$(if $(filter cuda%,$(DEVICE)),cuda,cpu)' $(BENCH)

.PHONY: doctor
doctor: ## say what of this machine, libtorch and its devices is usable
	@LIBTORCH='$(LIBTORCH)' scripts/doctor $(BIN)

.PHONY: torture
torture: build ## kill, stop and starve every stage, and compare what comes out, about an hour (TORTURE=... for options)
	@scripts/torture --kind all $(TORTURE)

.PHONY: fuzz
fuzz: ready ## feed damaged files to every reader, a minute each (FUZZ=... for options of scripts/fuzz)
	@scripts/fuzz $(FUZZ)

.PHONY: sanitize
sanitize: ready ## run the tests of torch-ext with its C++ under AddressSanitizer
	@scripts/sanitize

# needs PROGRAM: an error that says how to install it, where cargo has no such command.
needs = command -v $(1) >/dev/null || { \
    echo "error: $(1) is missing; install it with: cargo install --locked $(1)" >&2; exit 1; }

.PHONY: deny
deny: ## check licences, sources and advisories of the dependencies with cargo-deny and cargo-audit
	@$(call needs,cargo-deny)
	@$(call needs,cargo-audit)
	@cargo deny --all-features check
	@cargo audit --deny warnings

.PHONY: sbom
sbom: ## write what each binary is made of to target/sbom, as CycloneDX
	@$(call needs,cargo-cyclonedx)
	@scripts/sbom '$(TARGET)/sbom'

.PHONY: clean
clean: ## remove the runs
	rm -rf runs

.PHONY: distclean
distclean: clean ## remove the runs, the build and libtorch
	rm -rf $(TARGET) .libtorch
