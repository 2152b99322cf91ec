"""Tables of cells as CSV files, with a row for each cell."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_jax.files.output import complete_text


def write_table(
    file: Path, image: str, pages: Sequence[Mapping[str, np.ndarray]], class_names: Sequence[str]
) -> None:
    """Writes the cells of all pages of an image.

    Args:
      file: to write, .csv.
      image: its name, for the first column.
      pages: for each page, the table of `measure`; the page's number, from 0, is the second
        column.
      class_names: by class.
    """
    with complete_text(file, newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image", "page", *pages[0]])
        for page, table in enumerate(pages):
            writer.writerows([image, page, *row] for row in text_rows(table, class_names))


def text_rows(
    table: Mapping[str, np.ndarray], class_names: Sequence[str] = ()
) -> Iterator[list[str]]:
    """The cells of a table of `measure` as they are written; NaN is left empty."""
    for row in zip(*table.values(), strict=True):
        yield [
            class_names[value] if name == "class" else _text(value)
            for name, value in zip(table, row, strict=True)
        ]


def join_tables(folder: Path, tables: Sequence[Path]) -> None:
    """Joins the tables of single images into one, `table.csv` in the folder.

    Columns that an image does not have stay empty. If there is no table, nothing is written.

    Raises:
      OSError: a table cannot be read, or the joint one cannot be written.
      ValueError: a table was not written by this program.
    """
    if not tables:
        return
    columns: dict[str, None] = {}
    for table in tables:
        with table.open(newline="", encoding="utf-8") as opened:
            header = next(csv.reader(opened), [])
        if header[:3] != ["image", "page", "number"]:
            raise ValueError(f"{table.name} was not written by this program")
        columns |= dict.fromkeys(header)
    with complete_text(folder / "table.csv", newline="") as joined:
        writer = csv.DictWriter(joined, [*columns])
        writer.writeheader()
        for table in tables:
            with table.open(newline="", encoding="utf-8") as opened:
                writer.writerows(csv.DictReader(opened))


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if math.isnan(value) else f"{value:.10g}"
    return str(value)
