"""The work on a volume in small pieces: each function reads and writes only parts of it.

Within a stage they are called in any order and in any number of processes; the stages are:

1. `measure`, for each plane: the statistics of its grey values.
2. `predict`, for each block: mask, classes, probabilities.
3. `find`, for each block, `number`, for each plane, `grow`, for each block: the cells.
4. `sum_up`, for each block, `tabulate`, for each plane: the table of the cells.
5. `halve`, for each block of a level: the pyramids.

What is written exists either completely or not at all, so whatever exists is finished.
"""

import contextlib
import csv
import dataclasses
import functools
import io
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import imagecodecs
import jax
import numpy as np
import tensorstore

from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.files.cell_table import text_rows
from unet_jax.files.hyperstack import volume_frame
from unet_jax.files.ome_zarr import Volume, missing_chunks, open_volume
from unet_jax.files.zarr_store import read_object, stored_chunks, write_object
from unet_jax.grey_values import MAX_GREY_VALUE, are_grey_values, statistics_of_parts
from unet_jax.hardware import cpu_cores, is_out_of_memory
from unet_jax.instances import InstanceSettings
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_block
from unet_jax.tiles import side_of_step
from unet_jax.volumes.cell_sums import sum_cells, table_of_sums
from unet_jax.volumes.cells import (
    Grid,
    Part,
    Pieces,
    find_pieces,
    grow_cells,
    number_pieces,
    part_for_growth,
    part_for_pieces,
)
from unet_jax.volumes.output import NewImage, count_levels, create_output, fill_block, finished

#: Groups in that of the result: of the statistics, and of what is deleted when all is finished.
STATISTICS, INTERMEDIATE = "statistics", "intermediate"
#: What to tell of a block that does not fit.
MORE_MEMORY = "needs more memory or smaller blocks"
_DTYPES = {"mask": "uint8", "classes": "uint8", "cells": "uint32", "probabilities": "float32"}


class Plane(NamedTuple):
    """The position of an image in a volume."""

    t: int
    z: int


class Block(NamedTuple):
    """The position of a block: its plane, and its place in the plane's grid of blocks."""

    t: int
    z: int
    row: int
    column: int


#: What a stage is done of.
Item = Plane | Block


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """Everything that a process must know to do any part of the work.

    Attributes:
      source: of the volume, see `open_volume`.
      output: of the result.
      model: to predict with.
      kinds: the arrays: "mask", and those of "probabilities", "classes" and "cells" requested.
      has_table: whether the table of the cells is written.
      averaging: "none" or "symmetries".
      settings: for finding the cells.
      side: of a block, in pixels.
      step: see `tile_step`, a divisor of `side`.
      made_with: what the result depends on, for the attributes of its group.
    """

    source: str
    output: str
    model: Model
    kinds: tuple[str, ...]
    has_table: bool
    averaging: str
    settings: InstanceSettings
    side: int
    step: int
    made_with: dict[str, Any]

    # In each process once.
    @functools.cached_property
    def volume(self) -> Volume:
        """The opened source."""
        return open_volume(self.source)

    @functools.cached_property
    def model_on_device(self) -> Model:
        """The model, so that its parameters need not be sent again for each block."""
        return dataclasses.replace(self.model, params=jax.device_put(self.model.params))

    @functools.cached_property
    def names(self) -> str:
        """The axes of masks, classes and cells."""
        return "".join(name for name in "tzyx" if name in self.volume.axes.names)

    @functools.cached_property
    def levels(self) -> dict[str, tuple[tensorstore.TensorStore, ...]]:
        """The arrays of each kind of result, the full resolution first; created if necessary."""
        made_with, labels = self.made_with, {}
        for kind in self.kinds:
            if kind in ("classes", "cells"):
                labels[kind] = self._new_image(kind)
        output = create_output(self.output, made_with, self._new_image("mask"), labels)
        levels = {"mask": output.image, **output.labels}
        if "probabilities" in self.kinds:
            place, new = f"{self.output}/probabilities", self._new_image("probabilities")
            levels["probabilities"] = create_output(place, made_with, new).image
        return levels

    @functools.cached_property
    def pieces(self) -> tensorstore.TensorStore:
        """The pieces of cells, through which blocks know about each other."""
        new = dataclasses.replace(self._new_image("cells"), levels=1)
        return create_output(f"{self.output}/{INTERMEDIATE}", self.made_with, new).image[0]

    def grid(self, level: int = 0) -> Grid:
        """The blocks of a plane, at a level of its pyramid."""
        _, _, height, width, _ = self.volume.shape
        return Grid(-(-height // 2**level), -(-width // 2**level), self.side)

    def planes(self) -> list[Plane]:
        """All planes."""
        times, depths, *_ = self.volume.shape
        return [Plane(t, z) for t in range(times) for z in range(depths)]

    def blocks(self, level: int = 0) -> list[Block]:
        """All blocks, plane by plane."""
        grid = self.grid(level)
        return [Block(*plane, *at) for plane in self.planes() for at in grid.blocks_in(grid.plane)]

    def _new_image(self, kind: str) -> NewImage:
        _, _, height, width, _ = self.volume.shape
        sizes = dict(zip("tzyx", self.volume.shape, strict=False))
        names = self.names
        if kind == "probabilities":
            sizes["c"] = self.model.network.classes
            names = "".join(name for name in "tczyx" if name in f"{names}c")
        return NewImage(
            self.volume.axes.of(names),
            tuple(sizes[name] for name in names),
            _DTYPES[kind],
            block=self.side,
            chunk=self.step,
            levels=count_levels(height, width, self.side),
        )


def environment() -> dict[str, str]:
    """The software and device of a process; if they differ, the last bits may differ, too."""
    packages = ("unet-jax", "jax", "jaxlib", "numpy", "scipy", "tensorstore")
    device = jax.devices()[0].device_kind
    if device == "cpu":  # the threads of XLA divide its sums
        device = f"cpu, {os.environ.get('NPROC') or cpu_cores()} thread(s)"
    return {name: version(name) for name in packages} | {"device": device}


def attempt(function: Callable[[Job, Item], Any], job: Job, item: Item) -> tuple[Any, str | None]:
    """The result of a stage's function, and a line about what failed for this item, or None.

    Raises:
      RunFailed: the result cannot be written to.
    """
    try:
        return function(job, item), None
    except InputError as error:
        return None, str(error)
    except MemoryError:
        return None, f"{place(job, item)}: {MORE_MEMORY}"
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None, f"{place(job, item)}: {MORE_MEMORY}"


def place(job: Job, item: Item) -> str:
    """The name of a plane or a block in messages."""
    plane = f"{job.source}: t {item.t}, z {item.z}"
    if isinstance(item, Plane):
        return plane
    part = job.grid().block((item.row, item.column))
    return f"{plane}, rows {part.top} to {part.bottom - 1}, columns {part.left} to {part.right - 1}"


def measure(job: Job, plane: Plane) -> int:
    """Writes the statistics of a plane's grey values; returns how many of its chunks are missing.

    Missing chunks are read as the fill value; programs leave out chunks of zeros.
    """
    pixels, grid = job.volume.plane(*plane), job.grid()

    def parts():
        for index in grid.blocks_in(grid.plane):
            part = pixels[_slices(grid.block(index))]
            if not are_grey_values(part):
                raise InputError(
                    f"{place(job, Block(*plane, *index))}: holds NaN, infinite or huge pixels, "
                    f"expected numbers up to {MAX_GREY_VALUE:g}"
                )
            yield part

    try:
        means, stds = statistics_of_parts(parts, job.model.percentiles)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{place(job, plane)}: {error}") from None
    _write(job, f"{STATISTICS}/{key(plane)}", means=means, stds=stds)
    return len(missing_chunks(job.volume, *plane))


def predict(job: Job, block: Block) -> None:
    """Writes the requested results of a block, except for the cells."""
    arrays = [job.levels[kind][0] for kind in job.kinds if kind != "cells"]
    if all(_is_there(array, block) for array in arrays):
        return  # by a worker that died before it could say so
    part = job.grid().block((block.row, block.column))
    statistics = _read(job, f"{STATISTICS}/{key(Plane(block.t, block.z))}")
    probabilities = predict_block(
        job.model_on_device,
        job.volume.plane(block.t, block.z),
        *_slices(part),
        (statistics["means"], statistics["stds"]),
        tile_side=side_of_step(job.step, job.model.network.depth),
        averaging=job.averaging,
    )
    if not np.isfinite(probabilities).all():
        raise InputError(
            f"{place(job, block)}: the network's output is not finite; use another --step"
        )
    is_cell = 1 - probabilities[..., 0] > job.settings.threshold
    pixels = {
        "mask": is_cell * np.uint8(255),
        "classes": probabilities.argmax(-1).astype(np.uint8),
        "probabilities": probabilities,
    }
    for kind in pixels.keys() & {*job.kinds}:
        _fill(job, job.levels[kind][0], block, pixels[kind])


def find(job: Job, block: Block) -> None:
    """Writes the pieces of cells in a block, and what `number` must know about them."""
    grid, index, array = job.grid(), (block.row, block.column), job.pieces
    seen = part_for_pieces(grid, index, job.settings)
    mask = _pixels(job, job.levels["mask"][0], block, seen)
    labels, pieces = find_pieces(mask == 0, grid, index, job.settings)
    _write(job, f"{INTERMEDIATE}/pieces/{key(block)}", **dataclasses.asdict(pieces))
    _fill(job, array, block, labels)


def number(job: Job, plane: Plane) -> None:
    """Writes the numbers of the cells of a plane."""
    grid = job.grid()
    pieces = {}
    for index in grid.blocks_in(grid.plane):
        read = _read(job, f"{INTERMEDIATE}/pieces/{key(Block(*plane, *index))}")
        pieces[index] = Pieces(**read)
    numbers = number_pieces(pieces, grid, job.settings)
    for index, table in numbers.tables.items():
        name = key(Block(*plane, *index))
        _write(job, f"{INTERMEDIATE}/numbers/{name}", table=table)
    _write(job, f"{INTERMEDIATE}/counts/{key(plane)}", count=np.int64(numbers.count))


def grow(job: Job, block: Block) -> None:
    """Writes the cells of a block."""
    grid, index = job.grid(), (block.row, block.column)
    plane, seen = Plane(block.t, block.z), part_for_growth(grid, index, job.settings)
    labels = _pixels(job, job.pieces, block, seen)
    tables = {
        other: _read(job, f"{INTERMEDIATE}/numbers/{key(Block(*plane, *other))}")["table"]
        for other in grid.blocks_in(seen)
    }
    cells = grow_cells(labels, tables, grid, index, job.settings)
    _fill(job, job.levels["cells"][0], block, cells)


def sum_up(job: Job, block: Block) -> None:
    """Writes what `tabulate` must know about the cells in a block."""
    grid = job.grid()
    part = grid.block((block.row, block.column))
    cells = _pixels(job, job.levels["cells"][0], block, part)
    image = job.volume.plane(block.t, block.z)[_slices(part)]
    sums = sum_cells(image, cells, part, grid.plane)
    _write(job, f"{INTERMEDIATE}/sums/{key(block)}", **sums)


def tabulate(job: Job, plane: Plane) -> tuple[Plane, bytes]:
    """The plane, and its part of the table of cells; the first plane's begins with the header."""
    grid = job.grid()
    blocks = [
        _read(job, f"{INTERMEDIATE}/sums/{key(Block(*plane, *index))}")
        for index in grid.blocks_in(grid.plane)
    ]
    table = table_of_sums(blocks, volume_frame(job.volume).micrometres())
    text = io.StringIO()
    writer = csv.writer(text)
    if plane == Plane(0, 0):
        writer.writerow(["t", "z", *table])
    writer.writerows([plane.t, plane.z, *row] for row in text_rows(table))
    return plane, text.getvalue().encode()


def halve(job: Job, block: Block, *, kind: str, level: int) -> None:
    """Writes a block of a level of a pyramid, 1 or higher, from the level below it."""
    below, array = job.levels[kind][level - 1 : level + 1]
    names = "".join(array.domain.labels)
    with _writing(job):
        fill_block(below, array, names, _index(array, block), nearest=kind in ("classes", "cells"))


def unfinished(array: tensorstore.TensorStore, wanted: list[Block]) -> list[Block]:
    """The blocks of an array that do not exist yet."""
    there = finished(array)
    return [block for block in wanted if _index(array, block) not in there]


def _is_there(array, block):
    index = _index(array, block)
    return index in stored_chunks(array, index[:-1])


def _index(array, block):
    """The index of a block in an array of blocks."""
    at = {"t": block.t, "c": 0, "z": block.z, "y": block.row, "x": block.column}
    return tuple(at[name] for name in array.domain.labels)


def _region(array, block, part):
    """A part of the block's plane in an array."""
    rows, columns = _slices(part)
    at = {"t": block.t, "c": slice(None), "z": block.z, "y": rows, "x": columns}
    return array[tuple(at[name] for name in array.domain.labels)]


def _pixels(job, array, block, part):
    try:
        return _region(array, block, part).read().result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(
            f"{place(job, block)}: the results written for it or its neighbours cannot be read "
            f"({one_line(error)}); delete the damaged file and run the command again"
        ) from error


def _fill(job, array, block, pixels):
    part = job.grid().block((block.row, block.column))
    with _writing(job):
        channels_first = np.moveaxis(pixels, -1, 0) if pixels.ndim > 2 else pixels
        _region(array, block, part).write(channels_first).result()


@contextlib.contextmanager
def _writing(job):
    try:
        yield
    except InputError:  # of what was read for it
        raise
    except Exception as error:  # TensorStore raises many kinds
        raise RunFailed(f"{job.output}: cannot be written to ({one_line(error)}).") from error


def _slices(part: Part) -> tuple[slice, slice]:
    return slice(part.top, part.bottom), slice(part.left, part.right)


def key(item: Item) -> str:
    """The name of the objects of a plane or a block, in a group of their kind."""
    return "/".join(map(str, item))


def _write(job: Job, name: str, **arrays: Any) -> None:
    """Writes small arrays as one object."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    with _writing(job):
        write_object(job.output, name, bytes(imagecodecs.zstd_encode(file.getvalue())))


def _read(job: Job, name: str) -> dict[str, Any]:
    content = read_object(job.output, name)
    try:
        file = io.BytesIO(imagecodecs.zstd_decode(content or b""))
        return dict(np.load(file, allow_pickle=False))
    except Exception as error:  # of the codec, of the archive, of NumPy
        raise InputError(
            f"{job.output}/{name}: is damaged or missing; delete it if it exists, and run the "
            "command again"
        ) from error
