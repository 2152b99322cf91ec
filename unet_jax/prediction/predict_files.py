"""Prediction of files: from a checkpoint and any number of images to results for Fiji."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.checked_settings import as_dict
from unet_jax.checkpoint.cell_settings import cell_settings
from unet_jax.errors import InputError, one_line
from unet_jax.files.cell_table import join_tables
from unet_jax.files.images import is_grey, read_image
from unet_jax.files.output import unlocking
from unet_jax.files.zarr_image import stored_files
from unet_jax.hardware import device_memory_bytes, host_memory_bytes
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.model import Model
from unet_jax.overlap_tile import AVERAGING, predict_tiled
from unet_jax.prediction.image_list import image_files
from unet_jax.prediction.ranking import rank_images
from unet_jax.prediction.result_record import ResultRecord
from unet_jax.prediction.results import CELL_KINDS, KINDS, USUAL_KINDS, ResultFiles
from unet_jax.uncertainty import has_opinions, predict_with_uncertainty

# Memory for a pixel, in bytes: of finding cells, and of predicting at another scale.
_CELL_BYTES, _SCALE_BYTES = 64, 32
_NAME_SHOWN = 30  # characters, in the progress bar


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The outcome of `predict_files`.

    Attributes:
      output: the folder of the results.
      files: how many image files there were to predict.
      done: how many of these have results now.
      skipped: how many of these already had all results before.
      problems: a line for each result that is missing.
      ranking: the page that says what to annotate next; None if it was not requested.
    """

    output: Path
    files: int
    done: int
    skipped: int
    problems: tuple[str, ...]
    ranking: Path | None = None

    def __str__(self):
        """A line or two, without the problems."""
        line = (
            f"{self.output}: results for {self.done} of {self.files} image file(s); "
            f"{self.skipped} had them already."
        )
        return f"{line}\nOpen {self.ranking}" if self.ranking else line


@unlocking()
def predict_files(
    workdir: str | Path,
    *,
    images: str | Path,
    output: str | Path,
    kinds: Sequence[str] = USUAL_KINDS,
    step: str | int = "best",
    averaging: str = "none",
    overwrite: bool = False,
    rank: bool = False,
) -> Predictions:
    """Predicts image files and writes those of the following results that `kinds` names, for each:

    STEM_probabilities.tif: float32, a channel for each class. STEM_classes.tif: uint8, the most
    probable class. STEM_cells.tif: a number for each cell, starting again on each page; uint16, or
    float32 for more than 65,535 cells, or uint32 then if the file is an OME-TIFF. STEM_overlay.png:
    cells, or else classes, over the image; a file for each page. STEM_table.csv: the measurements
    of each cell, see `measure`; and table.csv, the same for all images of the output folder.
    STEM_rois.zip: the outlines for ImageJ's ROI Manager. STEM_cells.geojson: outlines, classes and
    measurements for QuPath. STEM_uncertainty.tif: float32, entropy and spread, see
    `predict_with_uncertainty`. STEM_challenge.tif: float32, the probability of cell in the form
    that the ISBI 2012 challenge takes.

    Results that already exist for the same image, recognised by the digest of its file, and the
    same network are kept. Failures are reported at the end; everything else continues, including
    the other results of the same image.

    Args:
      workdir: the folder of the training run, or a network of the package, see
        `unet_jax.pretrained`.
      images: a file, a folder, or a pattern such as "data/*.tif".
      output: the folder to write to.
      kinds: some of `KINDS`; by default `USUAL_KINDS`.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether existing results may be replaced.
      rank: whether the images are ranked by what to annotate next, see `rank_images`; their
        uncertainty is written as well.

    Raises:
      InputError: nothing can be predicted; nothing has been written.
    """
    for name, values, known in (("kinds", kinds, KINDS), ("averaging", [averaging], AVERAGING)):
        for value in values:
            if value not in known:
                raise InputError(f"{name}: expected {', '.join(known)}, not {value!r}.")
    output = Path(output)
    kinds = [*kinds, "uncertainty"] if rank and "uncertainty" not in kinds else kinds
    model = checkpoint.load(workdir, step)
    if "uncertainty" in kinds and not has_opinions(model, averaging):
        raise InputError(
            "uncertainty: a single network gives only one prediction; give --averaging=symmetries, "
            "or the folder of a cross-validation (--folds)."
        )
    settings = cell_settings(workdir)
    files = image_files(images, output)
    made_with = {
        "step": model.record.step if model.record else None,
        "params_sha256": model.sha256(),
        "averaging": averaging,
        "cells": as_dict(settings),
    }
    _check_none_there(output, kinds, rank, overwrite)
    record = ResultRecord(output, made_with, files, overwrite)
    problems: list[str] = []
    done = skipped = 0
    written_of: dict[Path, Sequence[str]] = {}
    # By size, so that the time that is left is known although no file has been opened.
    sizes = [sum(part.stat().st_size for part in stored_files(file)) for file in files]
    with tqdm(total=sum(sizes), desc="Predicting", unit="B", unit_scale=True) as progress:
        for file, size in zip(files, sizes, strict=True):
            progress.set_postfix_str(file.name[:_NAME_SHOWN])
            try:
                row = record.row(file)
                missing = [kind for kind in KINDS if kind in kinds and kind not in row.kinds]
                if missing:
                    if overwrite and not row.kinds:
                        record.clear(file)
                    cells = settings if {*CELL_KINDS} & {*kinds} else None
                    written, failed = _predict_file(model, file, output, missing, cells, averaging)
                    problems += failed
                    if written:
                        row = dataclasses.replace(row, kinds=row.kinds + written)
                        record.add(row)
                else:
                    skipped += 1
                done += bool(row.kinds)
                written_of[file] = row.kinds
            except InputError as error:
                problems += error.args
            except (OSError, MemoryError) as error:
                problems.append(f"{file}: {one_line(error)}")
            progress.update(size)
    ranking, failed = _write_of_all(output, record, written_of, "table" in kinds, rank)
    problems += failed
    return Predictions(output, len(files), done, skipped, tuple(problems), ranking)


def _write_of_all(
    output: Path,
    record: ResultRecord,
    written_of: Mapping[Path, Sequence[str]],
    has_table: bool,
    rank: bool,
) -> tuple[Path | None, list[str]]:
    """Writes the table of all images in the folder, and ranks those of this call.

    Returns the page of the ranking, and a line for each result that could not be written.
    """
    ranking, problems = None, []
    try:
        if has_table or not (output / "table.csv").exists():
            join_tables(output, record.files("table"))
    except (OSError, ValueError) as error:
        problems.append(f"{output / 'table.csv'}: cannot be written: {one_line(error)}")
    if rank:
        unsure = [file for file, kinds in written_of.items() if "uncertainty" in kinds]
        try:
            ranking = rank_images(unsure, output)
        except (InputError, OSError) as error:
            problems.append(f"{output}: the images cannot be ranked: {one_line(error)}")
    return ranking, problems


def _check_none_there(output: Path, kinds: Sequence[str], rank: bool, overwrite: bool) -> None:
    """Raises InputError if a file for all images together exists and is not from this program."""
    names = ["table.csv"] * ("table" in kinds) + ["rank.csv", "rank.html"] * rank
    if overwrite or (output / "predictions.jsonl").exists():
        return
    for name in names:
        if (output / name).exists():
            raise InputError(f"{output / name}: exists already; use --overwrite to replace it.")


def _predict_file(
    model: Model,
    file: Path,
    output: Path,
    wanted: Sequence[str],
    settings: InstanceSettings | None,
    averaging: str,
) -> tuple[list[str], list[str]]:
    """Writes the requested results for one image file; without settings, no cells are found.

    Returns the kinds that have been written, and a line for each that could not be written;
    InputError if the image cannot be predicted.
    """
    images = _read_pages(model, file)
    pages, height, width, channels = images.shape
    results = ResultFiles(model, file, (pages, height, width), output, wanted)
    if not {"overlay", *CELL_KINDS} & {*wanted}:
        settings = None
    most = host_memory_bytes() // 2 // _CELL_BYTES
    if settings and height * width > most:
        settings = None
        problem = (
            f"{file}: has {height * width:,} pixels per page, too many to find single cells in the "
            f"memory of this machine, expected at most {most:,}; the other results are written"
        )
        results.problems |= dict.fromkeys(CELL_KINDS, problem)
    with results.opened():
        if not results.due():
            return [], results.lines()
        for page, image in enumerate(images):
            image = image if channels > 1 else image[..., 0]
            try:
                _predict_page(model, image, averaging, results, page)
                results.fill(page)
            except ValueError as error:
                raise InputError(f"{file}: page {page}: {error}") from error
            cells = None
            if settings and "cells" not in results.problems:
                with results.apart(*CELL_KINDS):
                    cells = find_cells(1 - results.probabilities[page][..., 0], settings)
                    results.keep_cells(page, image, cells)
            if "overlay" in results.due():
                with results.apart("overlay"):
                    results.write_overlay(page, image, cells)
    return results.due(), results.lines()


def _predict_page(model, image, averaging, results, page):
    out = results.probabilities[page]
    if results.uncertainty:
        predict_with_uncertainty(
            model,
            image,
            averaging=averaging,
            out=out,
            uncertainty=results.uncertainty[page],
            scratch=results.scratch,
        )
    else:
        predict_tiled(model, image, averaging=averaging, out=out)


def _read_pages(model: Model, file: Path) -> np.ndarray:
    """The image as the model takes it, real [pages, H, W, C]; InputError if it cannot take it."""
    images = read_image(file, mapped=True)
    if model.channels == 1 and is_grey(images):
        images = images[..., :1]  # grey levels stored as RGB
    _, height, width, channels = images.shape
    if channels != model.channels:
        raise InputError(
            f"{file}: has {channels} channel(s), expected {model.channels} as in training"
        )
    # JAX resizes with a matrix along each side.
    matrices = 4 * model.scale * (height**2 + width**2)
    needed = height * width * _SCALE_BYTES + matrices
    if model.scale != 1 and needed > device_memory_bytes() / 2:
        raise InputError(
            f"{file}: has pages of {height} x {width} pixels, too large for a network of scale "
            f"{model.scale:g} in the memory of this machine; cut it into parts"
        )
    return images
