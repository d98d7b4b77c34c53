# make demo    the main job on a real model: convert, calibrate, quantize, report
# make test    the test suite
# make test-slow  the tests that take long: models of several gigabytes, many runs under load; a quarter: make test-slow PART=1/4
# make test-avx2  what depends on the processor, on one without VNNI: emulated by qemu where this one has it; PART=1/4 as well
# make test-arm   models and patterns in onnxruntime for 64-bit ARM, which qemu emulates; installed in .arm64; PART=1/4 as well
# make test-oldest  the tests of what onnxruntime runs on integers, with the oldest versions supported, in .venv-oldest
# make test-tensorflow  the tests that need TensorFlow, which it installs first
# make test-openvino  the tests that run models in OpenVINO, which it installs first
# make test-distributed  the tests with workers of a cluster, for which it installs Ray first
# make support-table  measures what becomes of every kind of operator, and writes the table in docs/reference/operators.md
# make docs    writes the pages of the commands, and builds the site in build/site; a warning is an error
# make lint    style, formatting and types
# make bench   qtool beside other quantizers on real models, which it makes first; on your own: make bench MODELS=folder
# make clean   removes what these made
#
# The first of them makes a virtual environment in .venv; PYTHON names the interpreter to make it with.

PYTHON ?=
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
PACKAGES ?= '.[dev]'
REAL_MODELS := bench-models
MODELS ?= $(REAL_MODELS)
PART ?= 1/1

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_VENV := $(VENV)-docs
DOCS_BIN := $(DOCS_VENV)/bin
DOCS_STAMP := $(DOCS_VENV)/.installed
SOURCES := qtool calib formats samples benchmarks tests docs
BY_PROCESSOR := tests/placement tests/processors tests/zoo tests/quantize/test_quantize_command.py \
  tests/quantize/test_targets.py
PATTERNS := tests/placement/test_fusion_by_version.py tests/placement/test_fusion_of_layers.py \
  tests/placement/test_fusion_of_other_operators.py
EMULATOR := qemu-x86_64
EMULATED := --dist load --tx '2*popen//python=$(EMULATOR) -cpu Haswell $(BIN)/python'

.PHONY: demo test test-slow test-avx2 test-arm test-oldest oldest test-tensorflow test-openvino test-distributed support-table docs lint bench clean

demo: $(STAMP)
	$(BIN)/python samples/01_main_job.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --part $(PART)

# Programs that have many threads crash in the emulator now and then: what failed gets a second run.
test-avx2: $(STAMP)
	@if ! grep -qw -e avx512_vnni -e avx_vnni /proc/cpuinfo; then \
	  $(BIN)/python -m pytest -n 2 $(BY_PROCESSOR) --part $(PART); \
	elif command -v $(EMULATOR) >/dev/null; then \
	  $(BIN)/python -m pytest $(EMULATED) $(BY_PROCESSOR) --part $(PART) || \
	    $(BIN)/python -m pytest $(EMULATED) $(BY_PROCESSOR) --last-failed --last-failed-no-failures none; \
	else \
	  echo "skipped: this processor has VNNI, and there is no $(EMULATOR) to emulate one without it (Debian: apt install qemu-user)"; \
	fi

test-arm: $(STAMP)
	@if reason="$$($(BIN)/python -m tests.arm.install_runtime 2>&1)"; then \
	  $(BIN)/python -m pytest -n 2 tests/arm --part $(PART) && \
	    $(BIN)/python -m pytest -n 2 --arm64 $(PATTERNS) --part $(PART); \
	else \
	  echo "skipped: $$reason"; \
	fi

# Its onnxruntime is made for Python 3.11 to 3.13.
test-oldest:
	@$(MAKE) --no-print-directory oldest VENV=$(VENV)-oldest CONSTRAINTS=constraints-oldest.txt \
	  PACKAGES='. hypothesis pytest pytest-xdist'

oldest: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests/architecture tests/cli tests/config tests/passes tests/placement tests/quantize

test-tensorflow: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tensorflow]'
	$(BIN)/python -m pytest -m tensorflow

test-openvino: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[openvino]'
	$(BIN)/python -m pytest -m openvino

test-distributed: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[distributed]'
	$(BIN)/python -m pytest -m distributed

support-table: $(STAMP)
	$(BIN)/python -m tests.operators.support_table

docs: $(STAMP) $(DOCS_STAMP)
	$(BIN)/python docs/write_commands.py
	NO_MKDOCS_2_WARNING=1 $(DOCS_BIN)/python -m mkdocs build --quiet --strict

# The site needs nothing of qtool, so that its environment holds the extra alone.
$(DOCS_STAMP): $(STAMP) pyproject.toml
	$(BIN)/python -m venv --clear "$(DOCS_VENV)"
	$(BIN)/python -c 'import pathlib, tomllib; print(*tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  > "$(DOCS_VENV)/requirements.txt"
	$(DOCS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r "$(DOCS_VENV)/requirements.txt"
	@touch $@

lint: $(STAMP)
	$(BIN)/python -m ruff check $(SOURCES)
	$(BIN)/python -m ruff format --check $(SOURCES)
	$(BIN)/python -m mypy

bench: $(STAMP)
ifeq ($(MODELS),$(REAL_MODELS))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	-$(BIN)/python benchmarks/real_models.py "$(MODELS)"
endif
	$(BIN)/python benchmarks/compare.py "$(MODELS)" --all --output "$(MODELS)/results"

# The environment is made anew when what it should hold changes: no package of an older list stays behind.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@python=""; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    python="$$candidate"; break; \
	  elif test -n "$(PYTHON)"; then \
	    break; \
	  fi; \
	done; \
	if test -z "$$python"; then \
	  echo "needs Python 3.11 or newer with venv: make PYTHON=/path/to/python3.12 (Debian: apt install python3-venv)"; \
	  exit 2; \
	fi; \
	echo "making $(VENV) with $$python" && "$$python" -m venv --clear "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e $(PACKAGES)
	@touch $@

clean:
	rm -rf "$(VENV)" "$(VENV)-oldest" .arm64 "$(DOCS_VENV)" $(REAL_MODELS) demo-output build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
