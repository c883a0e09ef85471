# `make` lists what there is to make. The first target that needs it sets up the environment in
# $(VENV) from a lock; a stamp named after the lock's and pyproject.toml's contents marks it done,
# so a second run starts at once and touches no network.

PYTHON ?= python3
VENV ?= .venv
# On Linux the default build of torch carries CUDA, gigabytes of it; the tests need only the CPU
# build. `TORCH=` leaves torch out, and the tests that compare with it skip; accelerate is what the
# harness and peft ask for beside it.
TORCH ?= torch==2.13.0 accelerate==1.15.0 peft==0.21.2

# The TPU's compiler, which needs no TPU: `gptj plan` is tested with it where it can be installed.
# `LIBTPU=` leaves it out. It is jax's own choice for its version, of which the lock holds several.
LIBTPU ?= jax[tpu]

RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input --quiet
# Compiling bytecode for every installed file is half of an installation; Python does it for those
# that are used, and keeps it unless told otherwise.
INSTALL := $(PIP) install --no-compile
# What the evaluation harness needs of these is a few files of Python each, of which no wheels exist.
UNBUILT := rouge-score,sqlitedict,word2number
unexport PYTHONDONTWRITEBYTECODE
fingerprint = $(shell { echo "$(2)"; cat locks/$(1).txt pyproject.toml; } | cksum | cut -d' ' -f1)
DEMO := $(VENV)/.demo-$(call fingerprint,demo)
DIST := $(VENV)/.dist-$(call fingerprint,dist)
TEST := $(VENV)/.test-$(call fingerprint,test,$(TORCH)$(LIBTPU))

.PHONY: help demo test lint docs bench dist parcels lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(DEMO) ## train a small GPT-J and sample from it; TEXT=path trains on your own text
	@$(RUN) recipes/demo.py $(if $(TEXT),"$(TEXT)")

test: $(TEST) ## run the tests; PYTEST_ARGS="-k name" passes options on
	@$(RUN) -m pytest $(PYTEST_ARGS)

lint: $(TEST) ## check style, format and types
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(RUN) -m mypy

docs: $(TEST) ## write what the program says itself, and build the site: build/docs/site
	@$(RUN) docs/build.py
	@$(RUN) docs/book.py
	@$(RUN) docs/website.py

bench: $(TEST) ## measure training speed on this machine, beside PyTorch's
	@$(RUN) -m gptj.cli bench train --peer transformers $(BENCH_ARGS)

dist: ## build what is released, in dist/: the source, wheels, and a list of the lock's parts
	@$(MAKE) --no-print-directory VENV=$(VENV)-dist parcels

# Its tools disagree with the tests' about versions: they have an environment of their own. The
# wheel with the CPU's native programs is for Linux from as old a one on as they run on, which
# auditwheel finds; where they cannot be compiled, the wheel for everyone is the only one.
parcels: $(DIST)
	@rm -rf dist build/wheel
	@GPTJ_NATIVE=0 $(RUN) -m hatchling build -t sdist -t wheel
	@$(RUN) -m hatchling build -t wheel -d build/wheel
	@for wheel in build/wheel/*-linux_*.whl; do [ ! -e "$$wheel" ] || PATH="$(abspath $(VENV))/bin:$$PATH" \
	  $(RUN) -m auditwheel repair --wheel-dir dist "$$wheel"; done
	@$(RUN) -W "ignore:The Component this BOM is describing" -m cyclonedx_py requirements \
	  --pyproject pyproject.toml --mc-type library \
	  --output-reproducible --of JSON -o dist/gptj-jax-$$($(RUN) -m hatchling version).cdx.json locks/demo.txt

# The demo's versions are the test's, so that one environment serves both.
COMPILE = $(RUN) -m uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" --extra plot --group build

lock: $(TEST) ## resolve the locks anew after a change of dependencies; LOCK_ARGS=--upgrade for the newest
	@$(COMPILE) --extra test --extra dev --group docs --group torch-requires $(LOCK_ARGS) -o locks/test.txt
	@$(COMPILE) --constraint locks/test.txt $(LOCK_ARGS) -o locks/demo.txt
	@$(COMPILE) --group dist --constraint locks/demo.txt $(LOCK_ARGS) -o locks/dist.txt

clean: ## remove caches and build products; the environment stays
	@rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find benchmarks examples recipes src tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- the environment ------------------------------------------------------------------------

# A shell function: silent when its command succeeds, the command's whole output when it fails.
QUIETLY = quietly() { "$$@" >"$(VENV)/setup.log" 2>&1 || { cat "$(VENV)/setup.log" >&2; exit 1; }; }

# $(call install,LOCK,HOW LONG,EXTRA COMMAND,ANOTHER). `.unfinished` marks an environment whose first
# installation was interrupted: it is begun again rather than trusted.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "gptj needs Python 3.11 or later, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo missing):" \
	    "name another, as in: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) ($(2) the first time)"
	@if [ -e $(VENV)/.unfinished ] || ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/.unfinished; fi
	@$(QUIETLY); quietly $(INSTALL) --require-hashes --no-deps --only-binary :all: --no-binary $(UNBUILT) -r locks/$(1).txt
	@$(QUIETLY); quietly $(INSTALL) --no-index --no-deps --no-build-isolation -e .
	$(3)
	$(4)
	@rm -f $(VENV)/.unfinished $(VENV)/setup.log $(VENV)/.$(1)-* && touch $@
endef

$(DEMO): ; $(call install,demo,about half a minute)
$(DIST): ; $(call install,dist,about half a minute)

NO_LIBTPU := echo "no libtpu for this machine: the tests that compile for a TPU will skip"
$(TEST): ; $(call install,test,about a minute,$(if $(TORCH),@$(QUIETLY); quietly $(INSTALL) $(TORCH)),$(if $(LIBTPU),@$(INSTALL) "$(LIBTPU)" >/dev/null 2>&1 || $(NO_LIBTPU)))
