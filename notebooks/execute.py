"""Runs unet_jax.ipynb from top to bottom and stores it with its outputs.

    pip install -e .[notebook]
    python notebooks/execute.py

Needed whenever a cell, or what it shows, has changed. Four minutes on two CPU cores. What the
notebook writes, such as runs/, goes to a temporary folder.
"""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("unet_jax.ipynb")


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs the cells in `folder` and replaces their outputs.

    Args:
      notebook: changed in place.
      folder: an empty one, for what the cells write.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    client = NotebookClient(
        notebook,
        timeout=900,  # seconds for a cell
        coalesce_streams=True,  # of a progress bar the last state stays
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.language_info = {"name": "python"}


if __name__ == "__main__":
    stored = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        execute(stored, Path(scratch))
    nbformat.write(stored, NOTEBOOK)
