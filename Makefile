# Every target makes .venv itself; only g++, make and Python 3.11 or newer have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
INPUTS := pyproject.toml setup.py constraints.txt graphdsl/runtime/native.cpp graphdsl/runtime/abi.h

.PHONY: all demo test lint format fuzz sanitize wheel clean

all: $(READY)

$(READY): $(INPUTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable '.[hf,dev]'
	touch $@

# A checked layer, then text from a real model (fetched once into the cache).
demo: $(READY)
	$(BIN)/graphdsl doctor
	$(BIN)/graphdsl build examples/llama_layer.py
	$(BIN)/graphdsl run examples/llama_layer.py --tokens 7 --past 64
	$(BIN)/graphdsl run examples/my_activation.py --tokens 512
	$(BIN)/graphdsl generate smollm2 --greedy --max-new-tokens 96 --prompt "What is gravity?"

# One thread a process, for there are as many processes as cores; tests of threads say how many, and
# threads that wait leave the core to the other process.
test: lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile -m "not full" --durations 10 $(PYTEST)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix

# SEEDS random graphs through all passes, each pass verified; a tenth as many built for the cpu, and
# as many subsets and orders of the rules; random configs of every model family; the cases that are
# too many for `make test`. Ends with counts. All is compiled as for users.
SEEDS ?= 5000
fuzz: $(READY)
	TEST_FLAGS= OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 -m "fuzz or (full and not sanitize)" --seeds $(SEEDS) $(PYTEST)

# The kernels, the emulation of ATB and generated libraries under AddressSanitizer and
# UndefinedBehaviorSanitizer; the thread teams under ThreadSanitizer.
sanitize: $(READY)
	$(BIN)/python -m pytest -m sanitize $(PYTEST)

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info graphdsl/runtime/*.so
