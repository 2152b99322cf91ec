# Each target does its own set-up, in a virtual environment of its own.
PYTHON ?= python3

.PHONY: demo test test-slow test-napari docs clean

demo: .venv/installed
	.venv/bin/unet-jax train --config=demo --workdir=runs/demo
	.venv/bin/unet-jax eval --checkpoint=runs/demo --overwrite
	@echo "Open $(CURDIR)/runs/demo/evaluation/report.html"

# In their own order; by the number of tests, the notebook would come last and alone.
test: .venv/installed-test
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/ruff format --check

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --site-dir=build/site
	@echo "Open $(CURDIR)/build/site/index.html"

test-slow: .venv/installed-test
	.venv/bin/python -m pytest -m slow

# In a viewer under a virtual display. On Debian: apt install xvfb libgl1 libegl1 libxkbcommon-x11-0
# libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0
# libxcb-shape0 libxcb-xinerama0. Napari itself gives warnings.
test-napari: .venv/installed-napari
	xvfb-run -a .venv/bin/python -m pytest -m napari -W default tests/test_viewer.py

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable .[test]
	touch $@

.venv/installed-napari: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable '.[test,napari]' 'pyside6<6.12' pytest-qt
	touch $@

.venv/installed-docs: setup.cfg .venv/bin/pip
	.venv/bin/pip install --quiet --editable .[docs]
	touch $@

clean:
	rm -rf .venv build
