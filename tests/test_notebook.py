"""The notebook runs from top to bottom without data or GPU, and is stored as it ran."""

import copy
import json
import re
import socket
from importlib.metadata import version

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e .[notebook]")
pytest.importorskip("nbclient", reason="pip install -e .[notebook]")

from notebooks.execute import NOTEBOOK, execute  # noqa: E402


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(cells):
    return [output for cell in cells for output in cell.outputs]


def texts(cells):
    """What the cells have printed."""
    return "".join(o.text for o in outputs(cells) if o.output_type == "stream")


def pictures(cells):
    return [o for o in outputs(cells) if {"image/png", "image/jpeg"} & set(o.get("data", {}))]


def test_all_cells_run(notebook, tmp_path):
    stored = copy.deepcopy(notebook)
    [parameters] = [cell for cell in notebook.cells if "\nsteps = 1500  #@param" in cell.source]
    parameters.source = parameters.source.replace("\nsteps = 1500 ", "\nsteps = 10 ").replace(
        "config.data.scale =",
        "config.data.train, config.data.validation, config.data.test = (0, 8), (8, 9), (9, 11)\n"
        "config.data.scale =",
    )
    execute(notebook, tmp_path)

    cells = code_cells(notebook)
    printed = texts(cells)
    assert "blurred grey" in printed and "results for 3 of 3" in printed
    assert "Warning" not in printed, printed
    run = tmp_path / "runs" / "notebook"
    assert (run.with_suffix(".zip")).stat().st_size > 10_000
    assert (run / "evaluation" / "report.html").exists()
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["command"] == report["training"]["command"] == "unet_jax.ipynb"
    # What is stored shows what a run of today shows.
    for fresh, old in zip(cells, code_cells(stored), strict=True):
        assert len(pictures([fresh])) == len(pictures([old]))


def test_is_stored_with_its_pictures_and_nothing_of_the_machine(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(pictures(cells)) == 4
    assert NOTEBOOK.stat().st_size < 2_000_000
    assert {o.output_type for o in outputs(cells)} == {"stream", "display_data"}
    printed = texts(cells)
    assert not re.search(r"warning|error:|https?://|file://|(^|\s)/\w+/", printed, re.IGNORECASE)
    assert socket.gethostname() not in printed
    assert len(printed.splitlines()) < 120
    assert "timestamp" not in json.dumps(notebook) and "iopub" not in json.dumps(notebook)


def test_it_installs_the_package_and_keeps_the_runtimes_jax(notebook, tmp_path):
    first = code_cells(notebook)[0]
    # As in a runtime without unet_jax, where pip only says what it was asked for.
    first.source = (
        "from IPython import get_ipython\n"
        "get_ipython().register_magic_function(print, magic_name='pip')\n"
        + first.source.replace("not find_spec", "find_spec").partition("import jax")[0]
    )
    notebook.cells = [first]
    execute(notebook, tmp_path)
    pins = " ".join(f"{name}=={version(name)}" for name in ("jax", "jaxlib", "numpy"))
    assert texts([first]).startswith('install --quiet "unet-jax[notebook]" ')
    assert sorted(texts([first]).split()[3:]) == pins.split()
