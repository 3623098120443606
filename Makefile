# make cycle | test | test-full | test-oldest | bench | lint | sanitize. The first one makes .venv and installs everything into it.
#
#   VENV=path          another environment, made when it does not exist
#   TORCH=torch==2.13.0   TORCH_INDEX=https://download.pytorch.org/whl/cpu   which torch, and from where:
#                      pip's default on Linux is a CUDA build (2 GB); the CPU build is enough for everything but speed
#   SEEDS=3            make cycle: seeds to run
#   WORKERS=2          make test: processes that run tests, a file's tests all in the same one; 0: this one, one by one
#   SANITIZE_SECONDS=120  make sanitize: how long to fuzz; SANITIZE_SEED=n: from which seed, default a new one each time

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
EXTRAS ?= demo,test
SEEDS ?=
RUN ?= runs/demo
SANITIZE_SECONDS ?= 120
SANITIZE_SEED ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.vstar-fast
GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
NATIVE := pyproject.toml CMakeLists.txt $(wildcard csrc/*)
SOURCES := $(NATIVE:csrc/unicode_tables.py=)
FAST := not slow$(if $(GPU),, and not gpu)
# Tests run on one thread each; those of a GPU would stand in each other's way.
WORKERS ?= $(if $(GPU),0,2)
SHARED := -n $(WORKERS) --dist loadfile
COVERAGE := --cov=vstar_fast --cov-report=term:skip-covered

OLDEST := transformers==5.17.0

.PHONY: cycle test test-full test-oldest bench lint sanitize wheel clean
.DELETE_ON_ERROR:

cycle: $(STAMP)
	$(VENV)/bin/vstar-fast cycle --demo --run $(RUN) $(if $(SEEDS),--seeds $(SEEDS))

test: $(STAMP)
	$(PY) -m pytest -m "$(FAST)" $(SHARED) $(COVERAGE)

test-full: $(STAMP)
	$(PY) -m pytest $(COVERAGE)

# What touches transformers, against the oldest release that pyproject.toml allows: its names change from release to release.
test-oldest: $(STAMP)
	$(PY) -m pip install --quiet --upgrade --target build/oldest "$(OLDEST)"
	PYTHONPATH=build/oldest $(PY) -c "import transformers as t; assert t.__version__ == '$(OLDEST)'.split('==')[1], t.__version__"
	PYTHONPATH=build/oldest $(PY) -m pytest -m "$(FAST)" $(SHARED) tests/test_families.py tests/test_models.py tests/test_demo_model.py tests/test_generate.py tests/test_finetune*.py tests/test_packed.py tests/test_base_model.py tests/test_cycle.py

bench: $(STAMP)
	$(PY) -m vstar_fast.bench.runner all

# mypy sees the packages where a wheel has them: kernels/ and bench/ inside vstar_fast/.
lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(filter-out %.py,$(wildcard csrc/*)) $(wildcard tests/ops/*.cpp tests/ops/*.h tests/sanitize/*)
	rm -rf build/types && mkdir -p build/types/vstar_fast
	ln -s $(abspath $(filter-out %/__pycache__,$(wildcard vstar_fast/*)) kernels bench) build/types/vstar_fast/
	cd build/types && $(abspath $(PY)) -m mypy -p vstar_fast --config-file ../../pyproject.toml

# The C++ core without Python, under the address and undefined-behaviour sanitizers.
SANITIZE := -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
CORE := $(patsubst csrc/%.cpp,build/sanitize/%.o,$(filter-out %bindings.cpp,$(wildcard csrc/*.cpp)))
FUZZ := $(patsubst tests/sanitize/%.cpp,build/sanitize/fuzz_%.o,$(wildcard tests/sanitize/*.cpp))
HEADERS := $(wildcard csrc/*.h tests/sanitize/*.h)

sanitize: build/sanitize/fuzz
	build/sanitize/fuzz $(SANITIZE_SECONDS) $(SANITIZE_SEED)

build/sanitize/fuzz: $(CORE) $(FUZZ)
	$(CXX) $(SANITIZE) -pthread -o $@ $^

build/sanitize/%.o: csrc/%.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -DVSTAR_MOST_STATES=1000 -ffp-contract=off -Wall -Wextra -c -o $@ $<

build/sanitize/fuzz_%.o: tests/sanitize/%.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -Wall -Wextra -c -o $@ $<

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
