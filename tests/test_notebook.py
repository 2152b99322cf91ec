"""The notebook runs from top to bottom without data or GPU, and is stored as it ran."""

import copy
import json
import re
import socket

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -e .[notebook]")
nbclient = pytest.importorskip("nbclient", reason="pip install -e .[notebook]")

from notebooks.execute import CHECKOUT, NOTEBOOK, execute  # noqa: E402


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
    parameters.source = parameters.source.replace("\nsteps = 1500 ", "\nsteps = 20 ")
    before = sorted(CHECKOUT.glob("*"))
    execute(notebook, tmp_path)
    assert sorted(CHECKOUT.glob("*")) == before

    cells = code_cells(notebook)
    printed = texts(cells)
    assert "blurred grey" in printed and "new_0_cells.tif" in printed
    assert len(re.findall("Warning", printed)) == 0
    run = tmp_path / "runs" / "notebook"
    assert (run.with_suffix(".zip")).stat().st_size > 10_000
    assert (run / "evaluation" / "report.html").exists()
    report = json.loads((run / "evaluation" / "report.json").read_text())
    assert report["command"] == report["training"]["command"] == "python unet_jax.ipynb"
    # What is stored shows what a run of today shows.
    for fresh, old in zip(cells, code_cells(stored), strict=True):
        assert len(pictures([fresh])) == len(pictures([old]))


def test_is_stored_with_its_pictures_and_nothing_of_the_machine(notebook):
    cells = code_cells(notebook)
    slider = [cell for cell in cells if "skip-execution" in cell.metadata.get("tags", [])]
    assert len(slider) == 1 and "interact(" in slider[0].source
    counts = [cell.execution_count for cell in cells if cell not in slider]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures(cells)) == 6
    assert NOTEBOOK.stat().st_size < 3_000_000
    assert {o.output_type for o in outputs(cells)} == {"stream", "display_data"}
    printed = texts(cells)
    assert not re.search(r"warning|error:|https?://|file://|(^|\s)/\w+/", printed, re.IGNORECASE)
    assert socket.gethostname() not in printed
    assert len(printed.splitlines()) < 120
    assert "timestamp" not in json.dumps(notebook) and "iopub" not in json.dumps(notebook)


def test_outside_a_checkout_it_asks_for_the_address(notebook, tmp_path):
    notebook.cells = code_cells(notebook)[:1]
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    [failure] = outputs(notebook.cells)
    assert failure.traceback == [
        "Please put the address of the unet_jax repository (https://...) into `repository` at the "
        "top of this cell, and run it again."
    ]
