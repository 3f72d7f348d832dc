# make repro | sweep | tune | test | lint | report | image | locks      Everything they need goes into .venv, by hash.
#
#   make repro PROFILE=llama-3.3-70b     another experiment: profiles/*.yaml, copied over params.yaml
#   make sweep                           every k and five trees against what auto chooses, into results/sweep
#   make tune                            the baseline over dtype, compilation and threads, into results/tuning.json
#   make test PYTHON=python3.12          any Python 3.11 to 3.13; python3 unless said
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
LOCKS := requirements/cpu.lock requirements/dev.lock
READY := $(VENV)/.ready
TOOLS := docker/tools.lock
COMPILE := $(UV) pip compile -q
BY_HASH := --universal --python-version 3.11 --generate-hashes
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro sweep tune test test-slow fault-test load-test fuzz-test lint report image image-test image-test-cuda locks clean

repro: $(READY)
	@python -m stages.idle
ifdef PROFILE
	cp profiles/$(PROFILE).yaml params.yaml
endif
	dvc repro

sweep: $(READY)
	python -m stages.sweep

tune: $(READY)
	python -m stages.tune

test: lint
	pytest -m "not slow and not gpu"

# What takes minutes: two ranks through the stages, split drafts. Images have targets of their own below.
test-slow: $(READY)
	pytest -m "slow and not gpu" --ignore tests/pipeline/test_docker.py

lint: $(READY)
	ruff check .
	ruff format --check .

report: $(READY)
	python -m stages.report

image:
	docker build -f docker/Dockerfile -t treespec --build-arg REVISION="$$(git describe --always --dirty)" .

# Exactly what the locks say, and this project in place; anew when a lock, pyproject.toml or this file changes.
$(READY): $(LOCKS) pyproject.toml Makefile | $(UV)
	$(UV) pip sync -q --python $(BIN)/python --require-hashes $(LOCKS)
	$(UV) pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

$(UV): Makefile $(TOOLS)
	$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit("Python 3.11 to 3.13 is needed, not " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(TOOLS)
	touch $@

# What is locked stays; take a line out of a lock, or add -U here, to move it.
locks: $(UV)
	$(COMPILE) requirements/cpu.in --override requirements/overrides-cpu.txt $(BY_HASH) -o requirements/cpu.lock
	$(COMPILE) requirements/cuda.in $(BY_HASH) -o requirements/cuda.lock
	$(COMPILE) requirements/dev.in $(BY_HASH) -o requirements/dev.lock
	$(COMPILE) docker/tools.in $(BY_HASH) -o $(TOOLS)

clean:
	rm -rf $(VENV) data/gsm8k models/pypi-* models/path-* models/hf-*

# Every stage hurt at random moments, then gone on with: half an hour. And every question at 256 sequences at once.
fault-test: $(READY)
	pytest -s tests/pipeline/test_faults.py -m "slow or not slow"

load-test: $(READY)
	pytest -s tests/engine/test_load.py -m slow

# Build and run the image for real: on Docker, or as root on Debian without it; minutes and 20 GB of disk.
IMAGE_TEST := pytest tests/pipeline/test_docker.py tests/pipeline/test_docker_dvc.py -m slow -r NfE \
    -o tmp_path_retention_policy=failed

image-test: $(READY)
	$(IMAGE_TEST)

image-test-cuda: $(READY)
	TEST_VARIANT=cuda $(IMAGE_TEST)

# Random trees and batches on random engines against stock vLLM; FUZZ_SECONDS and FUZZ_SEED say how long and which.
fuzz-test: $(READY)
	pytest tests/engine/test_fuzz.py -m slow
