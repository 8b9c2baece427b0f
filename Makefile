# Every target sets up what it needs in .venv; stamps make the second run quick.
PYTHON ?= python3
WORKERS ?= 2  # processes that run tests; servers are tested alone, one after the other
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

help:  ## show the targets
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' Makefile

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip  # Debian's may be too old for editable installs

# The host first: it is large and seldom changes. LightLLM's own pins are a GPU stack that not every machine can install.
.venv/host.stamp: deploy/demo/requirements-cpu.txt | .venv/bin/python
	$(BIN)/pip install --quiet -r $<
	$(BIN)/pip install --quiet --no-deps lightllm==0.0.1
	@touch $@

.venv/package.stamp: pyproject.toml .venv/host.stamp
	$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

venv: .venv/package.stamp  ## .venv with LightLLM 0.0.1 and this package, editable

demo: venv  ## a real LightLLM server and where its GPU time goes (LIGHTLLM_SRC=…, DEMO_SECONDS=30 ends by itself)
	$(BIN)/python deploy/demo/demo.py

# What looks for faults that keep people from reading the page; the tests that need it skip without npm.
AXE := .cache/npm/node_modules/axe-core/axe.min.js
$(AXE):
	@mkdir -p .cache/npm
	npm install --silent --no-save --no-package-lock --ignore-scripts --fetch-retries 1 --prefix .cache/npm axe-core@4.14.1

axe: $(AXE)

test: lint  ## all tests; LIGHTLLM_SRC=… adds the ones with a LightLLM checkout
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory axe || echo 'could not get axe-core'; fi
	@status=0; \
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not server' $(PYTEST) || status=$$?; \
	$(BIN)/python -m pytest -m server $(PYTEST) || { last=$$?; [ $$last -eq 5 ] || status=$$last; }; \
	[ $$status -eq 5 ] && status=0; exit $$status

lint: venv  ## ruff, mypy, the style of texts and names, and which folder may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/docs/test_style.py
	@if [ -x $(BIN)/lint-imports ]; then $(BIN)/lint-imports; else echo 'import-linter needs Python 3.10: skipped'; fi

# Needs neither LightLLM nor torch.
.venv/tools.stamp: pyproject.toml | .venv/bin/python
	@[ -e .venv/package.stamp ] || $(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

contract: .venv/tools.stamp  ## how the plugin stands to a LightLLM: LIGHTLLM_SRC=CHECKOUT or LIGHTLLM_CLONE=CLONE
	@$(BIN)/python benchmarks/hosts/contract.py

fmt: venv  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboards: venv  ## grafana/dashboards from grafana/boards, and what Kubernetes needs of them and the rules
	$(BIN)/python grafana/build.py
	$(BIN)/python grafana/rules/build.py
	$(BIN)/python deploy/kubernetes/generate.py

wheel: venv  ## dist/lightllm_otel-*.whl
	$(BIN)/python -m build --wheel

clean:  ## remove everything that the targets made
	rm -rf .venv .cache dist build

.PHONY: help venv demo axe test lint contract fmt dashboards wheel clean
