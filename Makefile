# `make demo` and `make test` create the environment in .venv first if it is missing or older than pyproject.toml.
# The demo needs the package alone; what tests and docs need besides is added to the same environment when they are first made.
# Relative paths only: make splits names at spaces, and the folder of the project may have one in its name.

.DEFAULT_GOAL := help
.PHONY: help demo test check-slow check-oldest lint docs bench clean

PYTHONS ?= python3.13 python3.12 python3.11 python3
WORKERS ?= 2
PY := .venv/bin/python

CAN_MAKE_VENV := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
OLDEST := import re; print(*map("%s==%s.*".__mod__, re.findall(r"\x22(torch|torchvision)>=([0-9.]+)", open("pyproject.toml").read())))
IS_USABLE := import sys, pip; sys.exit(sys.version_info < (3, 11))

# The mark of a complete installation holds the folder's path: a copied or moved project must not run the code of the old place.
$(shell test "$$(cat .venv/installed 2>/dev/null)" = "$$(pwd -P)" || rm -f .venv/installed .venv/with-*)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed ## train and compare on real images, about two minutes; leaves demo/report.html
	$(PY) -m flatwise demo
	@test -f demo/report.html

test: lint ## lint, types and all tests but the slow ones
	$(PY) -m pytest -m "not slow" -n $(WORKERS)

check-slow: .venv/with-test,lint ## the tests that take minutes
	@$(PY) -m pytest -m slow || { code=$$?; test $$code -eq 5 && echo "there are no slow tests"; }

check-oldest: .venv/installed ## the tests with the oldest torch that pyproject.toml admits, in .venv-oldest; downloads 3 GB
	test -x .venv-oldest/bin/python || $(PY) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --disable-pip-version-check $$($(PY) -c '$(OLDEST)') -e ".[test]"
	.venv-oldest/bin/python -m pytest -m "not slow" -n $(WORKERS)

lint: .venv/with-test,lint ## ruff and pyright
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@if $(PY) -m pyright --version >/dev/null 2>&1; then \
		echo "$(PY) -m pyright"; \
		$(PY) -m pyright --pythonpath $(PY); \
	else \
		echo "TYPES WERE NOT CHECKED: pyright's engine needs node, which could be neither found nor fetched." >&2; \
		echo "With a connection, '$(PY) -m pyright --version' fetches it once, or shows what is in the way." >&2; \
	fi

docs: .venv/with-docs ## the documentation, its examples executed, into docs/_build/html
	$(PY) -m sphinx -W --keep-going -b html docs docs/_build/html

bench: .venv/with-bench ## the cost of a step, relative to the base optimizer's
	@for script in benchmarks/*.py; do $(PY) "$$script" || exit; done

clean: ## remove the environment, caches, and the demo: everything that make can make again
	rm -rf .venv .venv-oldest .pytest_cache .ruff_cache .hypothesis build dist demo docs/_build docs/gallery
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The mark is removed first and written last: an interrupted installation leaves none, and the next call goes on with it.
.venv/installed: pyproject.toml
	@rm -f $@
	@if ! $(PY) -c '$(IS_USABLE)' 2>/dev/null; then \
		found=; \
		for python in $(PYTHONS); do \
			if "$$python" -c '$(CAN_MAKE_VENV)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "flatwise needs Python 3.11 or newer with venv and pip; none of these is one: $(PYTHONS)." >&2; \
			echo "On Debian and Ubuntu: apt install python3-venv. Another one: make PYTHONS=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "creating .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	fi
	@echo "installing into .venv; torch is large, so this takes some minutes the first time"
	$(PY) -m pip install --disable-pip-version-check -e .
	@pwd -P > $@

.venv/with-%: .venv/installed
	@rm -f $@
	$(PY) -m pip install --disable-pip-version-check -e ".[$*]"
	@touch $@
