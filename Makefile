# Every target sets up its own environment; it needs Python 3.11 or later, pip and nothing else.
PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest/bin
NEWEST := .venv-newest/bin
# pyenv's python3.12 runs only where it was selected, so its installations are looked through too.
NEWEST_PYTHON ?= $(firstword $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null) \
	$(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) python3.12)
OLDEST_TESTS := $(addprefix tests/,test_compat.py adapters data sink transforms store/cache store/read dataset/test_far.py training/splits/test_overlap.py) \
	$(patsubst %,tests/training/test_%.py,augmented_runs data_module ddp lightning_resume loader monitor ranks resume settings)
TRAINERS := $(patsubst trainers/%.txt,%,$(wildcard trainers/*.txt))
EXTRAS := dev,docs,mace,bench
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
SPHINX := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo results bench gpu reliability test docs links check oldest newest trainers dist wheel format clean

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 13

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("zarrpipe needs Python 3.11 or later, and $(PYTHON) is %d.%d: name another one, as in make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

.venv-demo/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[train,torch-sim,mace,fsspec]' hypothesis pytest pytest-xdist
	touch $@

.venv-newest/.ready: pyproject.toml
	$(NEWEST_PYTHON) -m venv .venv-newest
	touch $@

.venv-dist/.ready:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet build cffconvert py-rattler-build twine
	touch $@

.venv-schnetpack/.ready: PYTHON := $(NEWEST_PYTHON)# SchNetPack 2.2 needs Python 3.12

.venv-%/.ready: trainers/%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --requirement trainers/$*.txt
	touch $@

demo: .venv-demo/.ready ## the closed loop: simulate, select, label, train, repeat
	OMP_NUM_THREADS=1 .venv-demo/bin/python recipes/closed_loop.py --out runs/demo

results: .venv/.ready ## the README's table of strategies on six molecules, in some 20 minutes
	$(BIN)/python recipes/strategies.py --task.out runs/strategies

bench: .venv/.ready ## zarrpipe beside other engines, in about 15 minutes; docs/understanding/benchmarks.md says what is measured
	$(BIN)/python -m benchmarks --out runs/bench/bench.jsonl
	$(BIN)/python -m benchmarks.report runs/bench/bench.jsonl

gpu: ## on a CUDA device, in at most 8 minutes: tests, transfers and gathers beside a plain copy, the wait of a small MACE
	@if $(PYTHON) -c 'import torch; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then python="$(PYTHON)"; \
	else $(MAKE) .venv/.ready && python=$(BIN)/python; fi && \
	OMP_NUM_THREADS=1 "$$python" -m benchmarks.gpu --out runs/gpu/gpu.jsonl

reliability: .venv/.ready ## a night of it: kills, faults, full disks, damaged stores, readers beside writers
	$(BIN)/python -m reliability all --out runs/reliability/reliability.jsonl

test: .venv/.ready ## every promise of docs/promises.md, in some 12 minutes
	$(PYTEST) -m "not slow"

docs: .venv/.ready ## the site, in build/docs; a warning, such as a link that leads nowhere, is an error
	$(SPHINX) --builder html docs build/docs

links: .venv/.ready ## links of the site to other sites; needs the internet
	$(SPHINX) --builder linkcheck docs build/links

check: .venv/.ready ## format, lint, types, all tests with branch coverage and the site, in some 20 minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) --cov --cov-report term --cov-fail-under 90

oldest: .venv-oldest/.ready ## what depends on other libraries, with the oldest releases that pyproject.toml allows
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest --numprocesses 2 $(OLDEST_TESTS)

newest: .venv-newest/.ready ## all tests with python3.12 and the newest release of everything
	$(NEWEST)/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[$(EXTRAS),fsspec]'
	$(NEWEST)/python -m pip list
	OMP_NUM_THREADS=1 $(NEWEST)/python -m pytest --numprocesses 2 --dist worksteal

trainers: $(TRAINERS:%=.venv-%/.ready) ## training from a store by NequIP, MatGL, ..., each in an environment of its own
	for name in $(TRAINERS); do OMP_NUM_THREADS=1 .venv-$$name/bin/python -m pytest \
	  tests/trainers/test_$$(echo $$name | tr - _).py || exit 1; done

dist: .venv-dist/.ready ## wheel and source distribution in dist, checked, and so are citation and conda recipe
	rm -rf dist
	.venv-dist/bin/python -m build --quiet --outdir dist
	.venv-dist/bin/twine check --strict dist/*
	.venv-dist/bin/cffconvert --validate
	.venv-dist/bin/python -c 'from rattler_build import *; Stage0Recipe.from_file("conda/recipe.yaml").render(VariantConfig())'

wheel: dist ## the wheel alone in an empty environment of PYTHON, where it runs the README
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet dist/*.whl
	env -u PYTHONPATH .venv-wheel/bin/python -P tests/packaging/run_readme.py alone
	.venv-wheel/bin/python -m pip install --quiet "$$(echo dist/*.whl)[import,train]"
	.venv-wheel/bin/python -m pip check
	env -u PYTHONPATH .venv-wheel/bin/python -P tests/packaging/run_readme.py code
	env -u PYTHONPATH .venv-wheel/bin/python -P tests/packaging/run_readme.py commands dist/*.tar.gz

format: .venv/.ready ## bring the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the targets made
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage* build dist *.egg-info runs
