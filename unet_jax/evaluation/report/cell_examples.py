"""The pictures of cells that are missed, false, split or merged: the largest cells of each kind."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_jax.evaluation.report.pictures import Panel
from unet_jax.evaluation.scoring import Measured
from unet_jax.figures import cell_colours, cell_picture, grey_values
from unet_jax.html_pages import jpeg

_EXAMPLES = 3  # of each kind
_MARGIN = 24  # pixels around a cell
_SIDE, _LARGEST_SIDE = 192, 384  # pixels of a picture
#: What the kinds of errors mean, by name.
KINDS = {
    "missed": "annotated cells that are not found, or of which too small a part is",
    "false": "found cells where none is annotated, or with the wrong outline",
    "split": "annotated cells that are found as several cells",
    "merged": "found cells that cover several annotated cells",
}


class CellExample(NamedTuple):
    """A cell that is wrong in some way: the image it is in, and its pictures."""

    name: str
    panels: list[Panel]


def cell_examples(images: Sequence[Measured]) -> dict[str, list[CellExample]]:
    """The largest cells of each kind of error, over all images."""
    found = {}
    for kind in KINDS:
        cells = (
            (int(sizes[cell]), index, int(cell))
            for index, image in enumerate(images)
            for sizes in [np.bincount(_of_kind(image, kind).ravel())]
            for cell in getattr(image.errors, kind)
        )
        largest = heapq.nlargest(_EXAMPLES, cells)
        found[kind] = [_example(images[index], kind, cell) for _, index, cell in largest]
    return found


def _of_kind(image: Measured, kind: str) -> np.ndarray:
    """The cells to which a kind of error refers: the annotated ones, or those found."""
    return image.example.instances if kind in ("missed", "split") else image.cells


def _example(image: Measured, kind: str, cell: int) -> CellExample:
    (box,) = ndimage.find_objects((_of_kind(image, kind) == cell).astype(np.uint8))
    window = tuple(
        slice(max(part.start - _MARGIN, 0), min(part.stop + _MARGIN, size))
        for part, size in zip(box, image.cells.shape, strict=True)
    )
    every = -(-max(part.stop - part.start for part in window) // _LARGEST_SIDE)
    window = tuple(slice(part.start, part.stop, every) for part in window)
    grey = grey_values(image.example.image)[window]
    colours = cell_colours(image.example.instances, image.cells)
    times = -(-_SIDE // max(grey.shape))
    panels = [Panel("image", jpeg(_magnified(grey, times)))]
    both = image.example.instances, image.cells
    titles = "annotated cells", "found cells"
    for title, cells, of_cells in zip(titles, both, colours, strict=True):
        picture = cell_picture(_magnified(grey, times), _magnified(cells[window], times), of_cells)
        panels.append(Panel(title, jpeg(picture)))
    return CellExample(image.example.name, panels)


def _magnified(array: np.ndarray, times: int) -> np.ndarray:
    return array.repeat(times, 0).repeat(times, 1)
