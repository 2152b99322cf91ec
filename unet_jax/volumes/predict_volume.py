"""Segmentation of an OME-Zarr volume of any size, block by block, into another one."""

import contextlib
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from unet_jax.checked_settings import as_dict
from unet_jax.errors import InputError
from unet_jax.files.ome_zarr import open_volume
from unet_jax.files.output import lock, probe, unlocking
from unet_jax.files.zarr_store import (
    delete_group,
    is_remote,
    list_objects,
    read_object,
    write_object,
)
from unet_jax.instances import InstanceSettings
from unet_jax.model import Model
from unet_jax.volumes import blocks
from unet_jax.volumes.blocks import Block, Item, Job, Plane, attempt, environment, unfinished
from unet_jax.volumes.output import check_writable

if TYPE_CHECKING:  # an extra, which takes a second to load
    from distributed import Client

logger = logging.getLogger("unet_jax")

#: What can be written of a volume.
VOLUME_KINDS = ("probabilities", "classes", "cells", "table")
#: The object of a result that holds the measurements of the cells.
TABLE = "table.csv"
_STEPS = (1024, 512, 256, 128, 64)
_SIDES = (256, 512, 1024, 2048)


@dataclass(frozen=True)
class VolumePrediction:
    """The outcome of `predict_volume`.

    Attributes:
      output: the result.
      blocks: how many blocks there are to predict.
      done: how many of these exist now.
      before: how many of these existed before.
      problems: a line for each plane or block that is missing.
    """

    output: str
    blocks: int
    done: int
    before: int
    problems: tuple[str, ...]

    def __str__(self):
        """One line, without the problems."""
        return (
            f"{self.output}: {self.done} of {self.blocks} block(s) done, {self.before} of them "
            "earlier."
        )


@unlocking()
def predict_volume(
    model: Model,
    source: str | Path,
    output: str | Path,
    *,
    write: Sequence[str] = ("classes", "cells"),
    averaging: str = "none",
    settings: InstanceSettings = InstanceSettings(),
    block_side: int | None = None,
    client: "Client | None" = None,
    part: tuple[int, int] | None = None,
) -> VolumePrediction:
    """Segments each image of an OME-Zarr into another one; call it again to continue after a stop.

    The result has the same bits whatever the blocks: those of `predict_tiled` for a whole image
    with the recorded tile side, and of `find_cells`. Processes that differ in their `environment`
    would differ by rounding, and do not continue each other's results. It is an OME-Zarr 0.5:
    the image is a mask, uint8, 255 = cell; `labels/classes` uint8; `labels/cells` uint32, a number
    for each cell, starting again in each image; `probabilities` float32, a channel for each class;
    `table.csv` the measurements of the cells, see `volumes.cell_sums`. What cannot be done is
    reported at the end; everything else continues.

    Args:
      model: from `unet_jax.load`, of scale 1.
      source: OME-Zarr 0.4 or 0.5, a path or s3://BUCKET/PATH; each time and depth is an image.
      output: a path or s3://BUCKET/PATH of the result.
      write: some of "probabilities", "classes", "cells", and "table", which also writes the cells.
      averaging: "none", or "symmetries" as for `predict_tiled`.
      settings: for finding the cells; the mask uses their threshold.
      block_side: pixels, a multiple of 64; by default 2048, less for smaller images. One block is
        predicted at a time, and is one stored object.
      client: of a Dask cluster, whose workers do the work; by default this process does it.
      part: (i, n) predicts only part i of the parts 0 ... n - 1 of the blocks; a call without it,
        after all of them, finishes the result.

    Raises:
      InputError: something cannot be used; nothing has been predicted.
      RunFailed: the result cannot be written to, or the cluster is gone; what exists is complete.
    """
    job = _job(model, str(source), str(output), write, averaging, settings, block_side, client)
    _prepare(job, part)
    failed: set[tuple[int, int]] = set()
    problems: list[str] = []

    with _workers(client, job) as do:

        def run(what: str, function: Callable[..., Any], items: Iterable[Item]) -> list[Any]:
            """Runs a stage, except for images with failures; returns its function's results."""
            due = [item for item in items if (item.t, item.z) not in failed]
            results = []
            bar = tqdm(do(function, due), total=len(due), desc=what, delay=3, leave=False)
            for item, result, problem in bar:
                if problem:
                    failed.add((item.t, item.z))
                    if problem not in problems[-1:]:  # as of statistics that cannot be read
                        problems.append(problem)
                else:
                    results.append(result)
            return results

        asked = _part_of(job.blocks(), part)
        unpredicted = _unpredicted(job)
        due = [block for block in asked if block in unpredicted]
        there = {*list_objects(job.output, f"{blocks.STATISTICS}/")}
        planes = [Plane(t, z) for t, z in dict.fromkeys((b.t, b.z) for b in due)]
        missing = run(
            "Statistics",
            blocks.measure,
            [plane for plane in planes if f"{blocks.STATISTICS}/{plane.t}/{plane.z}" not in there],
        )
        if any(missing):
            logger.warning(
                "%s: %d chunk(s) are missing, in %d of its images, and are read as the fill value",
                *(job.source, sum(missing), np.count_nonzero(missing)),
            )
        done = len(run("Predicting", blocks.predict, due))
        if part is None:
            _find_cells(job, run)
            _measure_cells(job, run, problems)
            for kind, levels in job.levels.items():
                for level in range(1, len(levels)):
                    halve = partial(blocks.halve, kind=kind, level=level)
                    run(f"Pyramid of {kind}", halve, unfinished(levels[level], job.blocks(level)))
            if not problems:
                delete_group(job.output, blocks.INTERMEDIATE)
                if not is_remote(job.output):
                    for folder in Path(job.output).glob(".part-*"):
                        shutil.rmtree(folder, ignore_errors=True)
    before = len(asked) - len(due)
    return VolumePrediction(job.output, len(asked), before + done, before, tuple(problems))


def _find_cells(job: Job, run: Callable[..., list]) -> None:
    """The stages of the cells, for the images that lack some."""
    if "cells" not in job.kinds:
        return
    due = unfinished(job.levels["cells"][0], job.blocks())
    if not due:
        return
    planes = [Plane(t, z) for t, z in dict.fromkeys((block.t, block.z) for block in due)]
    grid = job.grid()
    wanted = [Block(*plane, *at) for plane in planes for at in grid.blocks_in(grid.plane)]
    run("Pieces of cells", blocks.find, unfinished(job.pieces, wanted))
    counted = {*list_objects(job.output, f"{blocks.INTERMEDIATE}/counts/")}
    uncounted = [p for p in planes if f"{blocks.INTERMEDIATE}/counts/{p.t}/{p.z}" not in counted]
    run("Numbers of cells", blocks.number, uncounted)
    run("Cells", blocks.grow, due)


def _measure_cells(job: Job, run: Callable[..., list], problems: Sequence[str]) -> None:
    """Writes the table of the cells, once the cells of all images exist."""
    if problems or not job.has_table or list_objects(job.output, TABLE):
        return
    summed = {*list_objects(job.output, f"{blocks.INTERMEDIATE}/sums/")}
    due = [b for b in job.blocks() if f"{blocks.INTERMEDIATE}/sums/{blocks.key(b)}" not in summed]
    run("Measuring cells", blocks.sum_up, due)
    tables = run("Tables of cells", blocks.tabulate, job.planes())
    if not problems:
        write_object(job.output, TABLE, b"".join(text for _, text in sorted(tables)))


def _unpredicted(job: Job) -> set[Block]:
    arrays = [levels[0] for kind, levels in job.levels.items() if kind != "cells"]
    return {block for array in arrays for block in unfinished(array, job.blocks())}


def _part_of(items: list[Block], part: tuple[int, int] | None) -> list[Block]:
    index, count = part or (0, 1)
    return items[len(items) * index // count : len(items) * (index + 1) // count]


@contextlib.contextmanager
def _workers(client: "Client | None", job: Job) -> Iterator[Callable[..., Iterator]]:
    """Gives a function that runs a stage on all items and yields each with `attempt`'s result."""
    if client is None:
        yield lambda function, items: ((item, *attempt(function, job, item)) for item in items)
        return
    from unet_jax.volumes.cluster import on_workers

    with on_workers(client, job) as do:
        yield do


def _job(model, source, output, write, averaging, settings, block_side, client) -> Job:
    """The job; raises InputError for what cannot be done."""
    for kind in write:
        if kind not in VOLUME_KINDS:
            raise InputError(
                f"write: expected {', '.join(VOLUME_KINDS)} for a volume, not {kind!r}."
            )
    if averaging not in ("none", "symmetries"):
        raise InputError(
            f"averaging: expected none or symmetries for a volume, not {averaging!r}, for which a "
            "block would need its whole image."
        )
    if model.scale != 1:
        raise InputError(
            f"The model sees images at a scale of {model.scale:g}, but volumes are predicted as "
            "they are; write the volume at that scale first."
        )
    source, output = _place(source), _place(output)
    volume = open_volume(source)
    _, _, height, width, channels = volume.shape
    if channels != model.channels:
        raise InputError(
            f"{source}: has {channels} channel(s), expected {model.channels} as in training."
        )
    if not is_remote(output) and not is_remote(source):
        if Path(output).is_relative_to(source):
            raise InputError(f"{output}: is inside the volume; give another --output.")
    if block_side is None:
        block_side = next((side for side in _SIDES if side >= max(height, width)), _SIDES[-1])
    unit = max(_STEPS[-1], 2 ** (model.network.depth - 1))  # of the max-pooling grid
    if block_side < unit or block_side % unit:
        raise InputError(f"block_side: expected a multiple of {unit}, not {block_side}.")
    step = next((step for step in _STEPS if block_side % step == 0 and step % unit == 0), unit)
    if client is None:
        versions = environment()
    else:
        from unet_jax.volumes.cluster import common_environment

        versions = common_environment(client)
    stored = json.dumps([volume.array.spec().to_json()["metadata"], volume.axes.names])
    has_table = "table" in write
    wanted = {*write, "cells"} if has_table else {*write}
    kinds = ("mask", *(kind for kind in VOLUME_KINDS[:-1] if kind in wanted))
    made_with = {
        "parameters_sha256": model.sha256(),
        "step": model.record.step if model.record else None,
        "source": source.rsplit("/", 1)[-1],
        "source_sha256": hashlib.sha256(stored.encode()).hexdigest(),
        "write": [*kinds, *["table"] * has_table],
        "averaging": averaging,
        "block_side": block_side,
        "tile_step": step,
        "cell_settings": as_dict(settings),
        "versions": versions,
    }
    host_model = replace(model, params=jax.device_get(model.params), record=None)
    return Job(
        *(source, output, host_model, kinds, has_table, averaging, settings, block_side, step),
        made_with,
    )


def _place(url: str) -> str:
    """A path that is the same for all processes, wherever they were started."""
    return url.rstrip("/") if is_remote(url) else str(Path(url).resolve())


def _prepare(job: Job, part: tuple[int, int] | None) -> None:
    """Makes the arrays; InputError if another run is writing, or if there is no room."""
    if part is not None and not 0 <= part[0] < part[1]:
        raise InputError(
            f"part: expected a part such as 3/40, with parts 0 to 39, not {part[0]}/{part[1]}."
        )
    folder = Path(job.output)
    if read_object(job.output, "zarr.json") is None:
        if not is_remote(job.output):
            pixels = math.prod(job.volume.shape[:4])
            probe(folder, int(pixels * sum(_bytes_of(kind, job) for kind in job.kinds)))
        check_writable(job.output, job.side**2)
    if part is None and not is_remote(job.output):
        lock(folder)
    _ = job.levels
    if part is not None and not is_remote(job.output):
        folder = folder / f".part-{part[0]}-of-{part[1]}"
        folder.mkdir(exist_ok=True)
        lock(folder)


def _bytes_of(kind: str, job: Job) -> float:
    """Bytes of a pixel and its pyramid, compressed as in a picture full of cells."""
    if kind == "probabilities":
        return 4 / 3 * 4 * job.model.network.classes
    return 0.4 if kind == "cells" else 0.15  # what is intermediate counted in
