# Every target makes what it needs first: `make demo` and `make test` work straight after `git clone`.
#   CONFIG=configs/demo.yaml   RUN=runs/name   DATA="train.csv more.csv"   TEST=test.csv   ARGS="stack.trials=5"
#   LOGITS="name=file.csv other=file.parquet": stack these instead of stage one's logits (RUN defaults to runs/logits)
#   TEST_LOGITS="name=test.csv other=test.parquet": their logits of the test battles, for RUN/submission.csv
# A run remembers its settings: after its first command, RUN alone is enough. REDO=1 replaces finished training.
CONFIG ?=
DEMO   := configs/demo.yaml
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?=
PY     := $(VENV)/bin/python
ARENA  := ARENA_DISTILL_CALLER=make $(PY) -m ensemble.command

# A word that make takes for a variable of its own, as run=runs/mine or stack.trials=5, would be ignored in silence.
KNOWN   := RUN CONFIG DATA TEST LOGITS TEST_LOGITS ARGS REDO PAGE CARDS PRICE QUICK CPU EXTRAS PYTHON VENV PY USE_UV
UNKNOWN := $(foreach v,$(filter-out $(KNOWN),$(.VARIABLES)),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
$(if $(strip $(UNKNOWN)),$(error $(strip $(UNKNOWN)) is no variable here: these are RUN, CONFIG, DATA, TEST, LOGITS, REDO and \
  ARGS, which takes settings (ARGS="stack.trials=5")))

comma := ,
# A run needs no development tools, and any installation serves it; tests, lint, documents and benchmarks need dev.
READY := $(if $(EXTRAS),$(VENV)/.ready-$(EXTRAS),$(firstword $(wildcard $(VENV)/.ready-*) $(VENV)/.ready-run))
WITH_DEV := $(if $(findstring dev,$(EXTRAS)),$(EXTRAS),dev$(comma)$(EXTRAS))
DEV   := $(if $(EXTRAS),$(VENV)/.ready-$(WITH_DEV),$(firstword $(wildcard $(VENV)/.ready-dev*) $(VENV)/.ready-dev))
quoted = '$(subst ','\'',$(1))'
RUN_WORD  = $(if $(RUN),run=$(call quoted,$(RUN)),$(if $(LOGITS),run=runs/logits,$(if $(CONFIG),,run=runs/demo)))
OVERRIDES = $(RUN_WORD) $(if $(DATA),data.train=$(call quoted,$(DATA))) \
            $(if $(TEST),data.test=$(call quoted,$(TEST))) \
            $(if $(LOGITS),stack.logits=$(call quoted,$(LOGITS))) \
            $(if $(TEST_LOGITS),stack.test_logits=$(call quoted,$(TEST_LOGITS))) $(ARGS)
# CONFIG counts only where it is given. A run that remembers no settings gets those of the demo, if it may begin here.
SETTINGS = $(if $(CONFIG),$(call quoted,$(CONFIG))) $(OVERRIDES) $(if $(REDO),--redo)
BEGIN    = --default $(DEMO)
RUN_OR_DEMO = $(or $(RUN),runs/$(basename $(notdir $(or $(CONFIG),$(DEMO)))))

# So that a stage names the next command, unless this call of make goes on with it.
export ARENA_DISTILL_GOALS := $(MAKECMDGOALS)

.NOTPARALLEL:
.PHONY: help setup oof stack ablate distill predict cascade serve table report demo test test-slow test-gpu lint docs format bases plan recipes bench-oof bench-stack bench-gpu quality faults fuzz evidence check audit

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
	@echo; echo 'variables: RUN (default runs/demo), CONFIG (only for a new run), DATA, TEST, ARGS="key.sub=value …", REDO=1'

setup: $(READY)  ## create .venv with the pinned versions (EXTRAS=dev,gpu,cluster,track; CPU=1: torch without CUDA)

$(VENV)/.ready-%: pyproject.toml constraints.txt
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@if command -v uv >/dev/null 2>&1 && [ -n "$(USE_UV)" ]; then \
	  VIRTUAL_ENV=$(VENV) uv pip install -q -c constraints.txt $(if $(CPU),--torch-backend cpu) -e '.$(if $(filter-out run,$*),[$*])'; \
	else \
	  $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt \
	    $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu) -e '.$(if $(filter-out run,$*),[$*])'; \
	fi
	@touch $@

oof: $(READY)  ## stage one: fold jobs -> out-of-fold logits
	@$(ARENA) oof $(SETTINGS) $(BEGIN)

stack: $(READY)  ## stage two: stack and calibrate those logits, or LOGITS
	@$(ARENA) stack $(SETTINGS) $(if $(LOGITS),$(BEGIN))

ablate: $(READY)  ## measure the contribution of each part of stage two
	@$(ARENA) ablate $(SETTINGS)

distill: $(READY)  ## stage three: one student, saved as a Hugging Face folder
	@$(ARENA) distill $(SETTINGS)

predict: $(READY)  ## write RUN/submission.csv for TEST (ARGS="predict.model=ensemble": by the ensemble)
	@$(ARENA) predict $(SETTINGS)

cascade: $(READY)  ## loss against cost where only uncertain battles go on to dearer models
	@$(ARENA) cascade $(SETTINGS)

serve: $(READY)  ## serve RUN's student over HTTP, with a page (EXTRAS=serve; ARGS="--port 8001")
	@$(ARENA) serve $(call quoted,$(RUN_OR_DEMO)/distill/student) $(ARGS)

table: $(READY)  ## print the log loss of every stage and write RUN/metrics.json
	@$(ARENA) table $(SETTINGS)

report: $(READY)  ## write RUN/report/index.html; RUN="runs/a runs/b" also compares (PRICE=2.5 an hour)
	@$(ARENA) report $(call quoted,$(RUN_OR_DEMO)) $(ARGS) $(if $(PRICE),--price-per-hour $(PRICE))

demo: $(READY)  ## all three stages on the embedded synthetic arena, on a CPU
	@$(ARENA) demo $(DEMO) $(OVERRIDES) $(if $(REDO),--redo)

# Two processes with one thread each: small models gain nothing from a second thread.
test: $(DEV)  ## the tests without the slow ones
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(DEV)  ## all tests, slow ones included
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'slow or not slow'

test-gpu: $(DEV)  ## the tests of the GPU path on a CUDA GPU
	@ARENA_TEST_GPU=1 $(PY) -m pytest -m gpu

lint: $(DEV)  ## ruff, mypy --strict, import contracts
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

docs: $(DEV)  ## build the documentation site into site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

format: $(DEV)  ## format the code and apply ruff's fixes
	@$(VENV)/bin/ruff format . && $(VENV)/bin/ruff check --fix .

bases: $(READY)  ## rebuild the demo's base checkpoints (about 20 minutes)
	@$(ARENA) bases configs/bases

plan: $(READY)  ## memory, hours and totals of CONFIG on each GPU (CARDS=8: on eight; PRICE=2.5 a card hour)
	@$(ARENA) plan $(SETTINGS) $(BEGIN) $(if $(CARDS),--cards $(CARDS)) $(if $(PRICE),--price-per-hour $(PRICE))

recipes: $(READY)  ## hours and money of every shipped recipe (PRICE=2.5 a card hour; ARGS="--only lmsys": some of them)
	@$(PY) -m benchmarks.recipes $(if $(PRICE),--price-per-hour $(PRICE)) $(ARGS)

bench-oof: $(DEV)  ## benchmark fold jobs against transformers' Trainer (ARGS="--model FOLDER")
	@$(PY) -m benchmarks.speed.fold_jobs $(ARGS)

bench-stack: $(DEV)  ## benchmark stage two against LightGBMTunerCV, StackingClassifier and AutoGluon
	@$(PY) -m benchmarks.speed.stack_peers $(ARGS)

bench-gpu: $(DEV)  ## the GPU benchmark, 20 minutes on an 80 GB card (ARGS="--only rates,training"; ARGS=--check; QUICK=1: a CPU)
	@$(PY) -m benchmarks.gpu.bench $(if $(QUICK),--quick) $(ARGS)

QUICK_QUALITY = --battles 48 --tokens 96 --epochs 0.5 --only 'start from the member' --out runs/quality-quick

quality: $(DEV)  ## all stages on real judgements with small pre-trained models: hours, rerun to go on (QUICK=1: a smoke test)
	@$(PY) -m benchmarks.quality.students --sets chats arguments --half report --only 'start from the member' 'hard labels only' \
	  $(if $(QUICK),$(QUICK_QUALITY)) $(ARGS)

faults: $(DEV)  ## kill, fill the disk, damage files: results must stay the same bytes (ARGS="--kills 12")
	@$(PY) -m benchmarks.robustness.faults $(or $(ARGS),--write docs/evidence/faults.md)

fuzz: $(DEV)  ## thousands of hostile inputs (ARGS="--seed 2")
	@$(PY) -m benchmarks.robustness.fuzz $(or $(ARGS),--write docs/evidence/fuzz.md)

evidence: $(DEV)  ## each page of docs/evidence, its command and what has changed since (PAGE=choice: make that page again)
	@$(PY) -m benchmarks.evidence $(if $(PAGE),--page $(call quoted,$(PAGE))) $(ARGS)

check: $(READY)  ## profile the battle files in DATA, list every problem (ARGS="data.verdicts={1: a, 2: b} --write my.yaml")
	@$(ARENA) check $(call quoted,$(DATA)) $(ARGS)

audit: $(READY)  ## prove a finished run's invariants
	@$(ARENA) audit $(call quoted,$(RUN_OR_DEMO))
