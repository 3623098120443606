# make cycle | test | test-full | bench | lint. The first one makes .venv and installs everything into it.
#
#   VENV=path          another environment, made when it does not exist
#   TORCH=torch==2.13.0   TORCH_INDEX=https://download.pytorch.org/whl/cpu   which torch, and from where:
#                      pip's default on Linux is a CUDA build (2 GB); the CPU build is enough for everything but speed
#   SEEDS=3            make cycle: seeds to run

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
EXTRAS ?= demo,test
SEEDS ?=
RUN ?= runs/demo

PY := $(VENV)/bin/python
STAMP := $(VENV)/.vstar-fast
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/*)
SOURCES := $(NATIVE:csrc/unicode_tables.py=)
FAST := not slow$(if $(GPU),, and not gpu)
COVERAGE := --cov=vstar_fast --cov-report=term:skip-covered

.PHONY: cycle test test-full bench lint wheel clean
.DELETE_ON_ERROR:

cycle: $(STAMP)
	$(VENV)/bin/vstar-fast cycle --demo --run $(RUN) $(if $(SEEDS),--seeds $(SEEDS))

test: $(STAMP)
	$(PY) -m pytest -m "$(FAST)" $(COVERAGE)

test-full: $(STAMP)
	$(PY) -m pytest $(COVERAGE)

bench: $(STAMP)
	$(PY) -m vstar_fast.bench.runner all

# mypy sees the packages where a wheel has them: kernels/ and bench/ inside vstar_fast/.
lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(filter-out %.py,$(wildcard csrc/*)) $(wildcard tests/ops/*.cpp)
	rm -rf build/types && mkdir -p build/types/vstar_fast
	ln -s $(abspath $(filter-out %/__pycache__,$(wildcard vstar_fast/*)) kernels bench) build/types/vstar_fast/
	cd build/types && $(abspath $(PY)) -m mypy -p vstar_fast --config-file ../../pyproject.toml

wheel: $(STAMP)
	$(PY) -m pip wheel --no-deps -w dist .

clean:
	rm -rf build dist .venv

# A torch that is already there stays when the machine has an NVIDIA GPU: it may be built for it.
$(STAMP): $(SOURCES)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	if [ -n "$(GPU)" ] && $(PY) -c "import torch" 2>/dev/null; then \
	  echo "keeping the torch of $(VENV)"; \
	else \
	  $(PY) -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"; \
	fi
	$(PY) -m pip install -e ".[$(EXTRAS)]"
	touch $@
