# make demo    set up, measure three trained models and show results/index.html (about a minute after set-up)
# make test    set up and run the tests
# make docs    set up and write the documentation to build/docs, warnings being errors
# make check   set up, then lint, formatting, types and tests
# make dist    build the wheel and the source archive into dist/, and compare them with the files in git
# make notebooks    the tutorials as notebooks, in build/notebooks/
# make clean   remove what the targets above made, results included

PYTHON ?= python3
VENV ?= .venv
# CPU builds of torch; the ones on PyPI bring gigabytes of CUDA along on Linux.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --retries 1
OUT ?= results
DIST ?= dist
# What is installed: the clone, or a wheel.
PACKAGE ?= --editable .

.PHONY: demo demo-environment test check lint docs dist notebooks clean

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

docs: $(VENV)/ready-dev
	$(VENV)/bin/python -m sphinx --quiet --fail-on-warning --fresh-env --write-all --jobs auto docs build/docs
	@echo "Wrote build/docs/index.html"

dist: $(VENV)/ready-dev
	rm -rf $(DIST)
	$(VENV)/bin/python -m build --outdir $(DIST)
	$(VENV)/bin/python .ci/check_dist.py $(DIST)

notebooks: $(VENV)/ready-dev
	mkdir -p build/notebooks build/images
	cp docs/images/tutorial-*.png build/images
	cp docs/tutorials/*.md build/notebooks
	$(VENV)/bin/jupytext --quiet --to ipynb --set-kernel python3 build/notebooks/*.md
	rm build/notebooks/*.md

# The package alone, as a user installs it.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mesaopt needs Python 3.11 or newer; say which: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || $(PYTHON) -m virtualenv --quiet $(VENV) || \
		{ echo "Python cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	@echo "Installing torch (CPU build) and mesaopt into $(VENV) ..."
	@$(PIP) --extra-index-url $(TORCH_INDEX) "$$($(PYTHON) -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); print(next(x for x in d["project"]["dependencies"] if x.startswith("torch")))')"
	@$(PIP) $(PACKAGE)
	@touch $@

# And what developing it takes.
$(VENV)/ready-dev: $(VENV)/ready
	@$(PIP) --editable ".[dev,docs,hf,slurm]"
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) $(DIST) build .pytest_cache .ruff_cache .hypothesis
