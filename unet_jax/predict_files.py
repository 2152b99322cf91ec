"""Prediction of files: from a checkpoint and any number of images to results that Fiji opens."""

import contextlib
import glob
import hashlib
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import jax
import numpy as np
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.data.folder import SUFFIXES
from unet_jax.data.hyperstack import read_frame, reserve, result_file
from unet_jax.data.image_files import read_image
from unet_jax.environment import device_memory_bytes, host_memory_bytes
from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.figures import cell_colours, cell_picture, class_colours, grey_values, outlined
from unet_jax.instances import InstanceSettings, find_cells, read_settings
from unet_jax.model import Model
from unet_jax.output_files import complete, lock, probe, unlocking
from unet_jax.overlap_tile import predict_tiled

#: What can be written for an image.
KINDS = ("probabilities", "classes", "cells", "overlay", "challenge")

_RECORD = "predictions.jsonl"
_MAX_CELLS = 2**16 - 1
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
    probable class. STEM_cells.tif: uint16, a number for each cell, anew on each page.
    STEM_overlay.png: cells, or else classes, over the image; a file for each page. STEM_challenge
    .tif: float32, the probability of cell, as the ISBI 2012 challenge takes it.

    What was finished before with the same network is skipped. What fails is told at the end; the
    rest goes on.

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
      RunFailed: some images could not be predicted, with a line for each.
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
    finished = _begin(output, record, files, overwrite)
    problems, done, skipped = [], 0, 0
    # By size, so that the time that is left is known although no file has been opened.
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="Predicting", unit="B", unit_scale=True) as progress:
        for file in files:
            progress.set_postfix_str(file.name[:_NAME_SHOWN])
            status = file.stat()
            state = [status.st_size, status.st_mtime_ns]
            row = finished.get(file.stem)
            try:
                if row and row["state"] != state:
                    raise InputError(f"{file}: has changed since it was predicted; --overwrite.")
                if row and set(kinds) <= set(row["kinds"]):
                    skipped += 1
                else:
                    left_out = _predict_file(model, file, output, kinds, settings, averaging)
                    row = {"name": file.stem, "state": state, "kinds": kinds, "problems": left_out}
                    with (output / _RECORD).open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps(row) + "\n")
                done += 1
                problems += row["problems"]
            except InputError as error:
                problems += error.args
            except (OSError, MemoryError) as error:
                problems.append(f"{file}: {one_line(error)}")
            progress.update(state[0])
    print(f"{output}: results of {done} of {len(files)} image file(s), {skipped} there before.")
    if problems:
        raise RunFailed(*problems)
    return 0


def _find_files(images: str, output: Path) -> list[Path]:
    """The image files by name; they must not lie where the results go."""
    if Path(images).is_dir():
        found = Path(images).iterdir()
    else:
        found = map(Path, [images] if Path(images).is_file() else glob.glob(images, recursive=True))
    files = sorted(
        (f for f in found if f.suffix.lower() in SUFFIXES and f.name[0] != "." and f.is_file()),
        key=lambda file: (file.name, file),
    )
    if not files:
        raise InputError(
            f"{images}: no image there, expected a file ({', '.join(SUFFIXES)}), a folder of such "
            "files, or a pattern in quotes like 'data/*.tif'"
        )
    problems, by_stem = [], {}
    for file in files:
        other = by_stem.setdefault(file.stem, file)
        if other != file:
            problems.append(f"{file}: {other} has the same name, expected one")
    if output.resolve() in {file.parent.resolve() for file in files}:
        problems.append(f"{output}: holds the images; give another --output for the results")
    if problems:
        raise InputError(*problems)
    return files


def _begin(
    output: Path, record: dict[str, Any], files: list[Path], overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Makes the folder, or goes on in it; the rows of its record by the names of images.

    The record's first line is that of the network, and each other one that of a finished image.
    """
    probe(output, 0)
    lock(output)
    before, rows = record, []
    if overwrite:
        pass
    elif (output / _RECORD).exists():
        before, *rows = _read_record(output / _RECORD)
    else:
        results = {f"{file.stem}_{kind}" for file in files for kind in KINDS}
        for present in sorted(output.iterdir()):
            if present.stem in results:
                raise InputError(f"{present}: is there already; --overwrite replaces it.")
    for key, value in record.items():
        if before.get(key) != value:
            raise InputError(
                f"{output}: holds results with {key} = {before.get(key)}, not {value}; give another"
                " --output, or --overwrite."
            )
    with complete(output / _RECORD) as unfinished:
        text = "".join(json.dumps(row) + "\n" for row in [record, *rows])
        unfinished.write_text(text, encoding="utf-8")
    return {row["name"]: row for row in rows}


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
    settings: InstanceSettings,
    averaging: str,
) -> list[str]:
    """Writes the results of one image file; returns what of them it is too large for."""
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
    problems = []
    most = host_memory_bytes() // 2 // _CELL_BYTES
    if "cells" in kinds and pixels > most:
        kinds = [kind for kind in kinds if kind != "cells"]
        problems.append(
            f"{file}: has {pixels:,} pixels a page, too many to find single cells in this memory, "
            f"expected at most {most:,}; the rest is written"
        )

    frame = read_frame(file, pages)
    with contextlib.ExitStack() as stack:

        def result(kind, dtype, **options):
            name = output / f"{file.stem}_{kind}.tif"
            opened = result_file(name, frame, (height, width), dtype, **options)
            return stack.enter_context(opened) if kind in kinds else None

        probabilities = result("probabilities", np.float32, channels=names)
        classes = result("classes", np.uint8, largest=len(names) - 1, colours=colours)
        cells = result("cells", np.uint16, largest=255)
        challenge = result("challenge", np.float32)
        if probabilities is None:
            probabilities = [stack.enter_context(_scratch(output, (height, width, len(names))))]
            probabilities *= pages
        for page, image in enumerate(images):
            image = image if channels > 1 else image[..., 0]
            probability = probabilities[page]
            try:
                predict_tiled(model, image, averaging=averaging, out=probability)
            except ValueError as error:
                raise InputError(f"{file}: page {page}: {error}") from error
            for top in range(0, height, _ROWS):
                rows = slice(top, top + _ROWS)
                if not np.isfinite(probability[rows]).all():
                    raise InputError(
                        f"{file}: page {page}: the network's output is not finite; use another "
                        "--step."
                    )
                if classes:
                    classes[page][rows] = probability[rows].argmax(-1)
                if challenge:
                    challenge[page][rows] = 1 - probability[rows, :, 0]
            found = None
            if cells:
                found = find_cells(1 - probability[..., 0], settings)
                if found.max() > _MAX_CELLS:
                    raise InputError(
                        f"{file}: page {page} has {found.max():,} cells, expected at most "
                        f"{_MAX_CELLS:,}; cut it into parts"
                    )
                cells[page][:] = found
            if "overlay" in kinds:
                number = f"_{page:04d}" if pages > 1 else ""
                picture = _overlay(image, probability, found, colours)
                name = output / f"{file.stem}_overlay{number}.png"
                with complete(name) as unfinished:
                    unfinished.write_bytes(imagecodecs.png_encode(picture))
            del probability  # see `result_file`
    return problems


@contextlib.contextmanager
def _scratch(folder: Path, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A float32 array in a file without a name: it may be larger than the memory."""
    with tempfile.TemporaryFile(dir=folder) as file:
        reserve(file, math.prod(shape) * np.dtype(np.float32).itemsize)
        yield np.memmap(file, np.float32, "r+", shape=shape)


def _overlay(image, probability, cells, colours) -> np.ndarray:
    """uint8 [h, w, 3]: the cells in colours, or else the outline of cell, or the classes."""
    every = math.ceil(max(image.shape[:2]) / _OVERLAY_SIDE)
    grey = grey_values(image[::every, ::every])
    if cells is not None:
        cells = cells[::every, ::every]
        return cell_picture(grey, cells, cell_colours(cells, cells)[0])
    classes = probability[::every, ::every].argmax(-1)
    if len(colours) == 2:
        return outlined(grey, classes > 0)
    return cell_picture(grey, classes, colours)
