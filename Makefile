# Subjectloom: `make` alone lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
DEMO := demo
# Environments on top of .venv: their own packages take precedence.
GROUNDINGDINO := .venv-groundingdino
ENGINES := .venv-engines
DETECTOR_TESTS := tests/transforms/models/test_groundingdino.py tests/transforms/models/test_detector.py
# Without IMAGE, commands for Dataflow are printed and not run.
CLOUD := $(if $(IMAGE),,@echo would run:)
IMAGE_NAME := $(or $(IMAGE),REGION-docker.pkg.dev/PROJECT/REPOSITORY/subjectloom)
ENGINE_TESTS := tests/jobs/test_extra_engines.py
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

# Two test processes; all tests of a file run in the same one. tests/conftest.py orders the files.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help env groundingdino engines dataflow-image dataflow-template demo train test test-groundingdino test-engines test-fast test-wheel lint format bench lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

env: .venv/.ready  ## make the environment in .venv, with the exact versions of constraints.txt

.venv/.ready: constraints.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

groundingdino: $(GROUNDINGDINO)/.ready  ## make .venv-groundingdino, which runs Grounding DINO with its authors' code

engines: $(ENGINES)/.ready  ## make .venv-engines, which has Dataflow, Dask and what gs:// and s3:// need

.venv-%/.ready: constraints-%.txt .venv/.ready
	$(BIN)/python -m venv --clear --without-pip $(@D)
	$(abspath $(BIN))/python $(PURELIB) > "$$($(@D)/bin/python $(PURELIB))/below.pth"
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python --no-deps --compile-bytecode -r $< --editable .
	touch $@

demo: env  ## render sample scenes and build a FastComposer dataset from them, in demo/
	rm -rf $(DEMO)
	$(BIN)/subjectloom scenes $(DEMO)/scenes --count 64 --seed 7
	$(BIN)/subjectloom build fastcomposer --input $(DEMO)/scenes/images --output $(DEMO)/fastcomposer

train: env  ## train a small model on the demo's dataset, in runs/demo: curves, pictures, checkpoints
	test -d $(DEMO)/fastcomposer || $(MAKE) demo
	$(BIN)/subjectloom train fastcomposer --data $(DEMO)/fastcomposer --output runs/demo --resume

test test-fast test-groundingdino test-engines test-wheel: export OMP_NUM_THREADS = 1

test: env  ## the whole test suite
	$(PYTEST)
ifdef CI
	$(MAKE) test-groundingdino test-engines
else
	if $(MAKE) groundingdino; then $(MAKE) test-groundingdino; else \
	  echo "SKIPPED $(DETECTOR_TESTS): groundingdino-py could not be installed"; fi
	if $(MAKE) engines; then $(MAKE) test-engines; else \
	  echo "SKIPPED $(ENGINE_TESTS): the extras could not be installed"; fi
endif

test-groundingdino: groundingdino  ## the detector's tests, both backends, in .venv-groundingdino
	$(GROUNDINGDINO)/bin/python -m pytest $(DETECTOR_TESTS)

test-engines: engines  ## the tests of Dataflow, Dask and addresses, in .venv-engines
	$(ENGINES)/bin/python -m pytest $(ENGINE_TESTS)

test-fast: env  ## the tests that take a few seconds at most
	$(PYTEST) -m "not slow"

test-wheel: env  ## build the wheel, install it outside the clone, and build a dataset with it there
	.ci/test-wheel

lint: env  ## style, formatting, types, and known vulnerabilities of the pinned packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py

dataflow-image:  ## build and push Dataflow's image: IMAGE=..., MODELS="segmenter clip"
	$(CLOUD) docker build --file jobs/dataflow/Dockerfile --build-arg MODELS="$(MODELS)" --tag $(IMAGE_NAME) .
	$(CLOUD) docker push $(IMAGE_NAME)

dataflow-template:  ## write Dataflow's flex template: IMAGE=..., TEMPLATE=gs://BUCKET/subjectloom.json
	$(CLOUD) gcloud dataflow flex-template build $(or $(TEMPLATE),gs://BUCKET/subjectloom.json) \
	  --image $(IMAGE_NAME) --sdk-language PYTHON --metadata-file jobs/dataflow/metadata.json

format: env  ## fix style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env  ## run all benchmarks (hours) and write benchmarks/README.md
	$(BIN)/python -m benchmarks

lock: env  ## resolve the newest versions into constraints.txt
	$(BIN)/uv pip compile --quiet --upgrade --no-header --no-annotate --python-version 3.11 --extra dev setup.py -o constraints.txt

clean:  ## remove the environments, the demo and the files of packaging
	rm -rf .venv $(GROUNDINGDINO) $(ENGINES) $(DEMO) build dist *.egg-info
