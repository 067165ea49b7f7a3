# Everything happens in a virtual environment of the project's own, with pinned versions.
PYTHON ?= python3
# Tests and the demo start many processes: none should compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Models, logs and the peers' own environment, kept for the next run.
BENCH_WORK ?= build/bench

# OpenMP's workers spin while they wait; beside a second process each operation would then wait for the
# scheduler. One thread does not collapse.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: demo demo-stop test soak lint bench clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

demo-stop: $(READY)
	$(BIN)/python examples/demo.py --stop

# A file's tests stay in one process and share what they make. There is one process more than CI has cores: many
# tests wait for others that they started. Those marked `alone` measure time: they come last, when nothing else runs.
test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -q --durations 20 -n 3 --dist loadfile --no-loadscope-reorder -m "not alone and not soak"
	$(TEST_ENV) $(BIN)/python -m pytest -q -m alone $$(grep -rl --include='test_*.py' pytest.mark.alone tests)

# Everything at once on one server, for minutes; `test` does it for seconds. And every measure of the bench.
SOAK_SECONDS ?= 150
soak: $(READY)
	$(TEST_ENV) SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -q -s tests/promises/test_soak.py
	$(TEST_ENV) $(BIN)/python -m pytest -q -m soak tests/bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench all --work $(BENCH_WORK) --vllm $(BENCH_WORK)/vllm

clean:
	rm -rf $(VENV) demo-data
