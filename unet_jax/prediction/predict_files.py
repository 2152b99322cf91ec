"""Prediction of files: from a checkpoint and any number of images to results that Fiji opens."""

import contextlib
import glob
import hashlib
import json
import logging
import math
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import jax
import numpy as np
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.data.file_names import SUFFIXES, file_stem, has_image_suffix
from unet_jax.device import device_memory_bytes, host_memory_bytes
from unet_jax.errors import InputError, RunFailed, listed, one_line
from unet_jax.figures import cell_picture, class_colours, colours_by_number, grey_values, outlined
from unet_jax.files.hyperstack import read_frame, reserve, result_file
from unet_jax.files.images import read_image
from unet_jax.files.output import complete, lock, probe, unlocking
from unet_jax.instances import InstanceSettings, find_cells, read_settings
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_tiled

logger = logging.getLogger("unet_jax")

#: What can be written for an image.
KINDS = ("probabilities", "classes", "cells", "overlay", "challenge")

_RECORD = "predictions.jsonl"
# Memory for a pixel, in bytes: of finding cells, and of predicting at another scale.
_CELL_BYTES, _SCALE_BYTES = 64, 32
_ROWS = 256  # of a result that are looked at together
_NAME_SHOWN = 30  # characters, in the progress bar
_OVERLAY_SIDE = 2048  # pixels; larger images are shown smaller


@unlocking()
def predict_files(
    workdir: Path,
    *,
    images: str,
    output: Path,
    kinds: list[str],
    step: str,
    averaging: str,
    overwrite: bool,
) -> int:
    """Predicts image files and writes what is wanted of these, for each:

    STEM_probabilities.tif: float32, a channel for each class. STEM_classes.tif: uint8, the most
    probable class. STEM_cells.tif: a number for each cell, anew on each page; uint16, or beyond
    65,535 cells float32, and uint32 where the file is an OME-TIFF. STEM_overlay.png: cells, or else
    classes, over the image; a file for each page. STEM_challenge.tif: float32, the probability of
    cell, as the ISBI 2012 challenge takes it.

    What was written before for the same image, known by the digest of its file, and with the same
    network is left as it is. What fails is told at the end; the rest goes on, the other results of
    the same image too.

    Args:
      workdir: of the training run.
      images: a file, a folder, or a pattern such as "data/*.tif".
      output: the folder to write to.
      kinds: of `KINDS`.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether results that are there may be replaced.

    Returns:
      The exit status, 0.

    Raises:
      InputError: nothing can be predicted; nothing has been written.
      RunFailed: some results are missing, with a line for each.
    """
    model = checkpoint.load(workdir, step)
    settings, _ = read_settings(workdir)
    files = _find_files(images, output)
    record = {
        "step": model.description.get("step"),
        "params_sha256": _digest(model.params),
        "averaging": averaging,
        "cells": settings._asdict(),
    }
    rows = _begin(output, record, files, overwrite)
    problems, done, skipped = [], 0, 0
    # By size, so that the time that is left is known although no file has been opened.
    sizes = [file.stat().st_size for file in files]
    with tqdm(total=sum(sizes), desc="Predicting", unit="B", unit_scale=True) as progress:
        for file, size in zip(files, sizes, strict=True):
            progress.set_postfix_str(file.name[:_NAME_SHOWN])
            try:
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                row = rows.get(_name(file), {"sha256": digest, "kinds": []})
                if row["sha256"] != digest:
                    raise InputError(
                        f"{file}: {output} holds the results of another image of this name; give "
                        "another --output, or --overwrite."
                    )
                there, written = row["kinds"], []
                if set(kinds) <= set(there):
                    skipped += 1
                else:
                    written, failed = _predict_file(
                        model, file, output, kinds, there, settings, averaging
                    )
                    problems += failed
                if written:
                    row = {"name": file_stem(file), "sha256": digest, "kinds": there + written}
                    with (output / _RECORD).open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row) + "\n")
                done += bool(row["kinds"])
            except InputError as error:
                problems += error.args
            except (OSError, MemoryError) as error:
                problems.append(f"{file}: {one_line(error)}")
            progress.update(size)
    print(f"{output}: results of {done} of {len(files)} image file(s), {skipped} there before.")
    if problems:
        raise RunFailed(*problems)
    return 0


def _find_files(images: str, output: Path) -> list[Path]:
    """The image files by name; they must not lie where the results go."""
    path = Path(images)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [file for file in path.iterdir() if not file.name.startswith(".")]
    else:
        found = []
        # What exists is no pattern: the name of a folder may hold brackets.
        folder = next((f for f in path.parents if f.is_dir()), path.parent)
        pattern = str(path.relative_to(folder))
        # Nor is a bracket, where the pattern finds nothing with it as one.
        for tried in (pattern, pattern.replace("[", "[[]")):
            found = found or [
                folder / name for name in glob.iglob(tried, root_dir=folder, recursive=True)
            ]
        if not found:
            there = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
            raise InputError(
                f"{images}: nothing there has this name, {folder} holds {_first(there)}; expected a"
                " file, a folder, or a pattern in quotes like 'data/*.tif'"
            )
    expected = f"expected {', '.join(SUFFIXES)}"
    files, folders, others = [], [], []
    for file in sorted(found, key=lambda file: (file.name, file)):
        is_image = has_image_suffix(file) and file.is_file()
        (folders if file.is_dir() else files if is_image else others).append(file)
    if not files:
        remedy = "in Fiji: File > Save As > Tiff"
        if path in found:
            raise InputError(f"{images}: is no TIFF or PNG by its name, {expected}; {remedy}")
        filled = [f for f in folders if any(map(has_image_suffix, f.iterdir()))]
        if filled:
            inner = shlex.quote(f"{images}/*/*" if path.is_dir() else f"{images}/*")
            raise InputError(
                f"{images}: no image there itself, but in its folder(s) {_first(filled)}; for those"
                f" give --images={inner}"
            )
        if others or folders:
            raise InputError(
                f"{images}: holds {_first(others or folders)}, no TIFF or PNG, {expected}; {remedy}"
            )
        raise InputError(f"{images}: is an empty folder, {expected}")
    if others:
        logger.warning(
            "%s: %d file(s) left out, %s: %s", images, len(others), expected, _first(others)
        )
    problems, by_name = [], {}
    for file in files:
        other = by_name.setdefault(_name(file), file)
        if other != file:
            problems.append(
                f"{file}: its results would have the same names as those of {other}; rename one, or"
                " predict them one after the other, each with its own --output"
            )
    if output.resolve() in {file.parent.resolve() for file in files}:
        problems.append(f"{output}: holds the images; give another --output for the results")
    if problems:
        raise InputError(*problems)
    return files


def _first(files: list[Path]) -> str:
    return listed([file.name for file in files], 3) or "nothing"


def _name(file: Path) -> str:
    """What the results of an image are known by; some disks do not tell capital letters apart."""
    return file_stem(file).casefold()


def _begin(
    output: Path, record: dict[str, Any], files: list[Path], overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Makes the folder, or goes on in it; the rows of its record by the names of images.

    The record's first line is that of the network, with the names of all images that have been
    begun; each other one is of an image: the digest of its file, and the kinds of results there.
    """
    probe(output, 0)
    lock(output)
    names = {_name(file) for file in files}
    before, rows = record | {"images": []}, {}
    if (output / _RECORD).exists():
        before, *lines = _read_record(output / _RECORD)
        rows = {row["name"].casefold(): row for row in lines}
    problems = [
        f"{output}: holds results with {key} = {before.get(key)}, not {value}; give another"
        " --output, or --overwrite."
        for key, value in record.items()
        if before.get(key) != value
    ]
    if "images" not in before:
        problems = [
            f"{output}: holds results of an earlier version, which did not note of which images;"
            " give another --output, or --overwrite."
        ]
    begun = set() if problems else set(before["images"])
    if overwrite:
        rows = {name: row for name, row in rows.items() if name in begun - names}
    elif problems:
        raise InputError(problems[0])
    else:
        results = {f"{name}_{kind}" for name in names - begun for kind in KINDS}
        for present in sorted(output.iterdir()):
            if re.sub(r"_overlay_\d+$", "_overlay", _name(present)) in results:
                raise InputError(f"{present}: is there already; --overwrite replaces it.")
    record = record | {"images": sorted(begun | names)}
    with complete(output / _RECORD) as unfinished:
        lines = [json.dumps(row) + "\n" for row in (record, *rows.values())]
        unfinished.write_text("".join(lines), encoding="utf-8")
    return rows


def _read_record(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines) or not rows:  # else it was cut off by a kill
                raise InputError(f"{file}: is damaged; give another --output.") from error
    return rows


def _digest(params) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf))
    return digest.hexdigest()


def _predict_file(
    model: Model,
    file: Path,
    output: Path,
    kinds: list[str],
    there: list[str],
    settings: InstanceSettings,
    averaging: str,
) -> tuple[list[str], list[str]]:
    """Writes the results of one image file that are wanted and not there.

    Returns the kinds that have been written, and a line for each that could not be.
    """
    images = read_image(file, mapped=True)
    if model.channels == 1 and images.shape[-1] == 3 and (images == images[..., :1]).all():
        images = images[..., :1]  # grey levels stored as RGB
    pages, height, width, channels = images.shape
    if channels != model.channels:
        raise InputError(
            f"{file}: has {channels} channel(s), expected {model.channels} as in training"
        )
    names = model.description.get("class_names") or [
        f"class {c}" for c in range(model.network.classes)
    ]
    colours = class_colours(model.description)
    pixels = height * width
    most = device_memory_bytes() // 2 // _SCALE_BYTES
    if model.scale != 1 and pixels > most:
        raise InputError(
            f"{file}: has {pixels:,} pixels a page, expected at most {most:,} for"
            f" a network of scale {model.scale:g}; cut it into parts"
        )
    wanted = [kind for kind in KINDS if kind in kinds and kind not in there]
    failed = {}

    @contextlib.contextmanager
    def apart(kind):
        """What fails in the block, whatever it is, is this kind of result alone."""
        try:
            yield
        except Exception as error:
            failed[kind] = f"{file}: its {kind} cannot be written: {one_line(error)}"

    def is_due(kind):
        return kind in wanted and kind not in failed

    finds_cells = "cells" in kinds and bool({"cells", "overlay"} & {*wanted})
    most = host_memory_bytes() // 2 // _CELL_BYTES
    if finds_cells and pixels > most:
        failed["cells"] = (
            f"{file}: has {pixels:,} pixels a page, too many to find single cells in this memory, "
            f"expected at most {most:,}; the rest is written"
        )

    frame, stem, size = read_frame(file, pages), file_stem(file), (height, width)
    with contextlib.ExitStack() as stack:
        opened = {}

        def result(kind, dtype, **options):
            if is_due(kind):
                with apart(kind):
                    opened[kind] = stack.enter_context(contextlib.ExitStack())
                    name = output / f"{stem}_{kind}.tif"
                    return opened[kind].enter_context(
                        result_file(name, frame, size, dtype, **options)
                    )

        probabilities = result("probabilities", np.float32, channels=names)
        classes = result("classes", np.uint8, largest=len(names) - 1, colours=colours)
        challenge = result("challenge", np.float32)
        cells, count = None, 0
        if is_due("cells"):
            with apart("cells"):
                cells = stack.enter_context(_scratch(output, (pages, *size), np.int32))
        if not any(map(is_due, wanted)):
            return [], [*failed.values()]
        if probabilities is None:
            scratch = stack.enter_context(_scratch(output, (*size, len(names)), np.float32))
            probabilities = [scratch] * pages
        for page, image in enumerate(images):
            image = image if channels > 1 else image[..., 0]
            try:
                predict_tiled(model, image, averaging=averaging, out=probabilities[page])
                _fill(probabilities[page], classes and classes[page], challenge and challenge[page])
            except ValueError as error:
                raise InputError(f"{file}: page {page}: {error}") from error
            found = None
            if finds_cells and "cells" not in failed:
                with apart("cells"):
                    found = find_cells(1 - probabilities[page][..., 0], settings)
                    count = max(count, int(found.max()))
                    if cells is not None:
                        cells[page] = found
            if is_due("overlay"):
                with apart("overlay"):
                    number = f"_{page:04d}" if pages > 1 else ""
                    picture = _overlay(image, probabilities[page], found, colours)
                    with complete(output / f"{stem}_overlay{number}.png") as unfinished:
                        unfinished.write_bytes(imagecodecs.png_encode(picture))
        if is_due("cells"):
            with apart("cells"):
                # How many there are, and so their dtype, is known now.
                dtype = np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32
                options = {"largest": max(255, count)}
                name = output / f"{stem}_cells.tif"
                with result_file(name, frame, size, dtype, **options) as numbered:
                    for page in range(pages):
                        numbered[page][:] = cells[page]
        for kind, unfinished in opened.items():
            with apart(kind):
                unfinished.close()
    return [*filter(is_due, wanted)], [*failed.values()]


def _fill(
    probability: np.ndarray, classes: np.ndarray | None, challenge: np.ndarray | None
) -> None:
    """Writes the results that follow from the probabilities of a page, pixel by pixel."""
    for top in range(0, len(probability), _ROWS):
        rows = slice(top, top + _ROWS)
        if not np.isfinite(probability[rows]).all():
            raise ValueError("the network's output is not finite; use another --step.")
        if classes is not None:
            classes[rows] = probability[rows].argmax(-1)
        if challenge is not None:
            challenge[rows] = 1 - probability[rows, :, 0]


@contextlib.contextmanager
def _scratch(folder: Path, shape: tuple[int, ...], dtype: Any) -> Iterator[np.ndarray]:
    """An array in a file without a name: it may be larger than the memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, math.prod(shape) * np.dtype(dtype).itemsize)
        yield np.memmap(file, dtype, "r+", shape=shape)


def _overlay(image, probability, cells, colours) -> np.ndarray:
    """uint8 [h, w, 3]: the cells in colours, or else the outline of cell, or the classes."""
    every = math.ceil(max(image.shape[:2]) / _OVERLAY_SIDE)
    grey = grey_values(image[::every, ::every])
    if cells is not None:
        cells = cells[::every, ::every]
        return cell_picture(grey, cells, colours_by_number(cells))
    classes = probability[::every, ::every].argmax(-1)
    if len(colours) == 2:
        return outlined(grey, classes > 0)
    return cell_picture(grey, classes, colours)
