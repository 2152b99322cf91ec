# Each target does its own set-up, in a virtual environment of its own.
PYTHON ?= python3

.PHONY: demo test test-slow clean

demo: .venv/installed
	.venv/bin/python train.py --config=configs/demo.py --workdir=runs/demo
	.venv/bin/python eval.py --checkpoint=runs/demo --overwrite
	@echo "Open $(CURDIR)/runs/demo/evaluation/report.html"

test: .venv/installed-test
	.venv/bin/python -m pytest -n 2 --dist loadfile
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/ruff format --check

test-slow: .venv/installed-test
	.venv/bin/python -m pytest -m slow

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable .[test]
	touch $@

clean:
	rm -rf .venv
