"""The result files of one image."""

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from unet_jax.errors import one_line
from unet_jax.figures import cell_picture, class_colours, colours_by_number, grey_values, outlined
from unet_jax.files.cell_table import write_table
from unet_jax.files.geojson import write_geojson
from unet_jax.files.hyperstack import read_frame, reserve, result_file
from unet_jax.files.names import file_stem
from unet_jax.files.output import complete
from unet_jax.files.rois import write_rois
from unet_jax.measurements import measure
from unet_jax.model import Model

#: What can be written for an image.
KINDS = (
    *("probabilities", "classes", "cells", "overlay"),
    *("table", "rois", "geojson", "uncertainty", "challenge"),
)
#: What is written unless something else is asked for.
USUAL_KINDS = KINDS[:4]
#: What there is only of single cells; an overlay is of classes where there are none.
CELL_KINDS = ("cells", "table", "rois", "geojson")

_ENDINGS = {kind: f"{kind}.tif" for kind in KINDS} | {
    "overlay": "overlay.png",
    "table": "table.csv",
    "rois": "rois.zip",
    "geojson": "cells.geojson",
}

_ROWS = 256  # of a result that are looked at together
_OVERLAY_SIDE = 2048  # pixels; larger images are shown smaller


def existing_files(output: Path, name: str, kind: str) -> list[Path]:
    """The files that exist of a result, of an image of which this is the `file_stem`."""
    files = [output / f"{name}_{_ENDINGS[kind]}"]
    if kind == "overlay":  # or one for each page
        pages = (output / f"{name}_{_overlay_ending(page)}" for page in itertools.count())
        files += itertools.takewhile(Path.exists, pages)
    return [file for file in files if file.exists()]


def _overlay_ending(page: int) -> str:
    return f"overlay_{page:04d}.png"


class ResultFiles:
    """The result files of one image, which may be larger than the memory.

    While they are open, for each page write its probabilities first, then call `fill`, and if
    requested `keep_cells` and `write_overlay`.

    Attributes:
      probabilities: of each page, float32 [H, W, classes] to write to; one array for all pages if
        they are not themselves requested.
      uncertainty: of each page, float32 [H, W, 2] to write to; empty if it is not requested.
      scratch: float32 [H, W, classes] to write to, if uncertainty is requested.
      problems: a line for each kind that cannot be written; the others continue.
    """

    def __init__(
        self,
        model: Model,
        file: Path,
        shape: tuple[int, int, int],
        output: Path,
        wanted: Sequence[str],
    ):
        """The image has `shape`, (pages, height, width); `wanted` are some of `KINDS`."""
        self.probabilities: list[np.ndarray] = []
        self.uncertainty: list[np.ndarray] = []
        self.scratch: np.ndarray | None = None
        self.problems: dict[str, str] = {}
        self._file, self._shape, self._output, self._wanted = file, shape, output, wanted
        self._frame = read_frame(file, shape[0])
        self._class_names = model.class_names
        self._colours = class_colours(model.network.classes, model.class_colours)
        self._opened: dict[str, contextlib.ExitStack] = {}
        self._pages: dict[str, list[np.ndarray]] = {}  # of the opened ones
        self._cells: list[np.ndarray] = []  # of each page int32 [H, W]
        self._cell_count = 0  # on the page with the most
        self._tables: list[dict[str, np.ndarray]] = []  # of the pages, see `measure`

    def due(self) -> list[str]:
        """The kinds that are requested and have not failed."""
        return [kind for kind in self._wanted if kind not in self.problems]

    def lines(self) -> list[str]:
        """The problems, without repetitions."""
        return [*dict.fromkeys(self.problems.values())]

    @contextlib.contextmanager
    def apart(self, *kinds: str) -> Iterator[None]:
        """Any failure in the block affects only these kinds of result."""
        try:
            yield
        except Exception as error:
            names = " and ".join(self._due_of(*kinds) or kinds[:1])
            problem = f"{self._file}: its {names} cannot be written: {one_line(error)}"
            self.problems |= dict.fromkeys(kinds, problem)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """At the end of the block the files appear complete, or not at all after an error in it.

        Raises:
          OSError: there is no room on the disk for the probabilities.
        """
        names, (pages, height, width) = self._class_names, self._shape
        with contextlib.ExitStack() as stack:
            self._open(stack, "probabilities", np.float32, channels=names)
            self._open(stack, "classes", np.uint8, largest=len(names) - 1, colours=self._colours)
            self._open(stack, "challenge", np.float32)
            self._open(stack, "uncertainty", np.float32, channels=("entropy in bits", "spread"))
            if self._due_of("cells", "rois", "geojson"):
                with self.apart(*CELL_KINDS):
                    cells = stack.enter_context(_scratch(self._output, self._shape, np.int32))
                    self._cells = [*cells]
            shape = height, width, len(names)
            if "probabilities" in self._pages:
                self.probabilities = self._pages["probabilities"]
            elif self.due():
                scratch = stack.enter_context(_scratch(self._output, shape, np.float32))
                self.probabilities = [scratch] * pages
            if "uncertainty" in self._pages:
                self.uncertainty = self._pages["uncertainty"]
                self.scratch = stack.enter_context(_scratch(self._output, shape, np.float32))
            yield
            for kind in self._due_of(*CELL_KINDS):
                with self.apart(kind):
                    self._write_of_cells(kind)
            for kind, unfinished in self._opened.items():
                with self.apart(kind):
                    unfinished.close()

    def fill(self, page: int) -> None:
        """Writes the results that follow pixel by pixel from the probabilities of a page.

        Raises:
          ValueError: a probability is not finite.
        """
        probability = self.probabilities[page]
        for top in range(0, len(probability), _ROWS):
            rows = slice(top, top + _ROWS)
            if not np.isfinite(probability[rows]).all():
                raise ValueError("the network's output is not finite; use another --step.")
            if "classes" in self._pages:
                self._pages["classes"][page][rows] = probability[rows].argmax(-1)
            if "challenge" in self._pages:
                self._pages["challenge"][page][rows] = 1 - probability[rows, :, 0]

    def keep_cells(self, page: int, image: np.ndarray, cells: np.ndarray) -> None:
        """Takes the cells of a page, int [H, W]; results about cells are written after the last."""
        self._cell_count = max(self._cell_count, int(cells.max()))
        if self._cells:
            self._cells[page][:] = cells
        if measured := self._due_of("table", "geojson"):
            with self.apart(*measured):
                size, probability = self._frame.micrometres(), self.probabilities[page]
                self._tables.append(measure(image, cells, size, probability=probability))

    def write_overlay(self, page: int, image: np.ndarray, cells: np.ndarray | None) -> None:
        """Writes the picture of a page: cells, int [H, W], or otherwise classes, over the image."""
        ending = _overlay_ending(page) if self._shape[0] > 1 else _ENDINGS["overlay"]
        picture = _overlay(image, self.probabilities[page], cells, self._colours)
        with complete(self._path(ending)) as unfinished:
            unfinished.write_bytes(imagecodecs.png_encode(picture))

    def _path(self, ending: str) -> Path:
        return self._output / f"{file_stem(self._file)}_{ending}"

    def _open(self, stack: contextlib.ExitStack, kind: str, dtype: Any, **options: Any) -> None:
        """Opens a TIFF file if it is due; its pages are zeros to fill."""
        if kind in self.due():
            with self.apart(kind):
                self._opened[kind] = stack.enter_context(contextlib.ExitStack())
                file = result_file(
                    self._path(_ENDINGS[kind]), self._frame, self._shape[1:], dtype, **options
                )
                self._pages[kind] = self._opened[kind].enter_context(file)

    def _due_of(self, *kinds: str) -> list[str]:
        return [kind for kind in self.due() if kind in kinds]

    def _write_of_cells(self, kind: str) -> None:
        frame, names = self._frame, self._class_names
        file = self._path(_ENDINGS[kind])
        if kind == "table":
            write_table(file, self._file.name, self._tables, names)
        elif kind == "rois":
            write_rois(file, self._cells, frame)
        elif kind == "geojson":
            write_geojson(file, self._cells, self._tables, frame, names, self._colours)
        else:
            self._write_numbers()

    def _write_numbers(self) -> None:
        # How many there are, and so their dtype, is known now.
        is_few = self._cell_count <= np.iinfo(np.uint16).max
        with result_file(
            self._path(_ENDINGS["cells"]),
            self._frame,
            self._shape[1:],
            np.uint16 if is_few else np.uint32,
            largest=max(255, self._cell_count),
        ) as pages:
            for page, cells in enumerate(self._cells):
                pages[page][:] = cells


@contextlib.contextmanager
def _scratch(folder: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[np.ndarray]:
    """An array in an unnamed file: it may be larger than the memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, math.prod(shape) * np.dtype(dtype).itemsize)
        yield np.memmap(file, dtype, "r+", shape=shape)


def _overlay(
    image: np.ndarray, probability: np.ndarray, cells: np.ndarray | None, colours: np.ndarray
) -> np.ndarray:
    """uint8 [h, w, 3]: the cells in colours, or otherwise the outline of cell, or the classes."""
    every = math.ceil(max(image.shape[:2]) / _OVERLAY_SIDE)
    grey = grey_values(image[::every, ::every])
    if cells is not None:
        cells = cells[::every, ::every]
        return cell_picture(grey, cells, colours_by_number(cells))
    classes = probability[::every, ::every].argmax(-1)
    if len(colours) == 2:
        return outlined(grey, classes > 0)
    return cell_picture(grey, classes, colours)
