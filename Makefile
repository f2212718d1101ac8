# make demo    set up, measure three trained models and show results/index.html (about a minute after set-up)
# make test    set up and run the tests
# make check   set up, then lint, formatting, types and tests
# make clean   remove what the targets above made, results included

PYTHON ?= python3
VENV ?= .venv
# CPU builds of torch; the ones on PyPI bring gigabytes of CUDA along on Linux.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1
OUT ?= results

.PHONY: demo demo-environment test check lint clean

demo: $(VENV)/ready
	$(VENV)/bin/mesaopt demo --out $(OUT)

demo-environment: $(VENV)/ready

test: $(VENV)/ready-dev
	$(VENV)/bin/python -m pytest -q -n 2

check: lint test

lint: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyrefly check --summary=none

# The package alone, as a user installs it.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mesaopt needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv --quiet $(VENV) || \
		{ echo "Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	@echo "Installing torch (CPU build) and mesaopt into $(VENV) ..."
	@$(PIP) --extra-index-url $(TORCH_INDEX) "$$($(PYTHON) -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); print(next(x for x in d["project"]["dependencies"] if x.startswith("torch")))')"
	@$(PIP) --editable .
	@touch $@

# And what developing it takes.
$(VENV)/ready-dev: $(VENV)/ready
	@$(PIP) --editable ".[dev,hf]"
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) .pytest_cache .ruff_cache .hypothesis
