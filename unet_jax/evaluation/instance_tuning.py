"""How the settings for finding single cells are chosen, on the validation split.

By SEG, which says how well the annotated cells are covered, and by panoptic quality, which also
counts what is found where there is no cell.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unet_jax.checked_settings import as_dict
from unet_jax.checkpoint import load_members
from unet_jax.checkpoint.cell_settings import SETTINGS
from unet_jax.errors import InputError
from unet_jax.evaluation.images import left_out, predict_parts
from unet_jax.example import Example
from unet_jax.files.output import complete, writable_folder
from unet_jax.instances import InstanceSettings, divided, nearest_cells, numbered
from unet_jax.metrics.matching import matching_score
from unet_jax.metrics.scores import cell_overlaps
from unet_jax.pretrained import is_pretrained, run_folder


class Quality(NamedTuple):
    """How good the cells are that are found; `tune` chooses by the sum of both.

    Attributes:
      seg: see `metrics.seg`; nothing that lies mostly on ignored pixels counts.
      panoptic_quality: see `metrics.Matching`, at an overlap of 0.5.
    """

    seg: float
    panoptic_quality: float

    def __str__(self):
        """Both, as part of a sentence."""
        return f"SEG {self.seg:.4f} and panoptic quality {self.panoptic_quality:.4f}"


class Tuned(NamedTuple):
    """The settings that `tune` has chosen.

    Attributes:
      settings: the first of several equally good ones.
      quality: of all images together.
      left_out: of the cells of each image with the settings chosen on all other images, which is
        closer to that on new images; None if only one image has cells.
    """

    settings: InstanceSettings
    quality: Quality
    left_out: Quality | None


@dataclass(frozen=True)
class Tuning:
    """What `tune_instances` has chosen.

    Attributes:
      file: where it was written.
      settings: how single cells are found from now on.
      quality: of the cells found with them in the validation images.
      left_out: see `Tuned`.
      images: their names.
    """

    file: Path
    settings: InstanceSettings
    quality: Quality
    left_out: Quality | None
    images: list[str]

    def __str__(self):
        """The settings, and how good they are; two or three lines."""
        settings = ", ".join(f"{name} {value:g}" for name, value in as_dict(self.settings).items())
        said = f"{self.file}: {self.quality} on {len(self.images)} validation images with\n"
        if self.left_out is None:
            return said + settings
        return (
            f"{said}{settings}\n"
            f"{self.left_out} if the settings for each image are chosen on the others."
        )


def tune_instances(
    workdir: str | Path,
    *,
    step: str | int = "best",
    averaging: str = "none",
    overwrite: bool = False,
) -> Tuning:
    """Chooses how single cells are found, on the validation split, and writes `instances.json`.

    In a cross-validation, each fold's network predicts the part that it was not trained on.

    Args:
      workdir: the folder of the training run; later evaluations of it use what is written.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether earlier settings may be replaced.

    Raises:
      InputError: the checkpoint or the data cannot be used; nothing has been written.
      RunFailed: the network's output is not finite.
    """
    workdir = run_folder(workdir)
    if is_pretrained(workdir):
        raise InputError(
            f"{workdir.name}: comes with the package, and nothing is written to it; tune a run of "
            "your own, such as one that starts from it."
        )
    parts = left_out(load_members(workdir, step))
    writable_folder(workdir, (SETTINGS,), overwrite)
    examples = [example for part in parts for example in part.examples]
    if not any(example.instances.any() for example in examples):
        raise InputError("No image of the validation split has an annotated cell to tune on.")
    probabilities = predict_parts(parts, averaging)
    tuned = tune(examples, [1 - p[..., 0] for p in probabilities])
    names = [example.name for example in examples]
    record = {
        **as_dict(tuned.settings),
        "on_validation": tuned.quality._asdict(),
        "left_out": tuned.left_out and tuned.left_out._asdict(),
        "step": step,
        "averaging": averaging,
        "images": names,
    }
    with complete(workdir / SETTINGS) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Tuning(workdir / SETTINGS, *tuned, names)


def tune(examples: Sequence[Example], probabilities: Sequence[np.ndarray]) -> Tuned:
    """The settings with which SEG and panoptic quality are highest on these examples, as a sum.

    Report scores on other examples.

    Args:
      examples: with at least one cell; their cells determine the sizes of cells and holes to try.
      probabilities: of cell, float [H, W] for each example.
    """
    settings, counted = zip(*_tried(examples, probabilities), strict=True)
    counts = np.array(counted)  # [settings, images, ...]
    of_all = counts.sum(1)
    best = _best(of_all)
    left_out = None
    if np.count_nonzero([example.instances.any() for example in examples]) > 1:
        of_others = _best(of_all[:, None] - counts)
        left_out = _quality(counts[of_others, range(len(examples))].sum(0))
    return Tuned(settings[best], _quality(of_all[best]), left_out)


def _best(counts: np.ndarray) -> np.ndarray:
    """The settings, by their place on the first axis; of equally good ones the first."""
    return np.round(sum(_quality(counts)), 9).argmax(0)


def _quality(counts: np.ndarray) -> Quality:
    """Of what `_counts` returns, [..., 4], added up over images."""
    covered, cells, shared, either = np.moveaxis(counts, -1, 0)
    return Quality(covered / np.maximum(cells, 1), shared / np.maximum(either, 1))


def _counts(example: Example, found: np.ndarray) -> tuple[float, float, float, float]:
    """What SEG and panoptic quality of one image are quotients of."""
    pairs = cell_overlaps(example, found)
    (at_half,) = matching_score([pairs], [0.5])
    covered = float(pairs.overlap[pairs.covered > 0.5].sum())
    either = 2 * at_half.found + at_half.false + at_half.missed
    return covered, pairs.true_ids.size, 2 * at_half.shared, either


def _tried(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray]
) -> Iterator[tuple[InstanceSettings, list[tuple[float, float, float, float]]]]:
    """Settings, with the `_counts` of each image."""
    ids = [example.instances[example.instances > 0] for example in examples]
    smallest = int(np.concatenate([np.unique(i, return_counts=True)[1] for i in ids]).min())
    thresholds = 0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95
    largest_holes = smallest // 16, smallest // 4
    neck_ratios = 0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9
    grid = list(product(thresholds, largest_holes, neck_ratios))
    for threshold, largest_hole, neck_ratio in tqdm(grid, desc="Tuning", delay=3):
        settings = InstanceSettings(threshold, largest_hole, neck_ratio)
        basins = [divided(p, settings) for p in probabilities]
        for smallest_cell in (smallest // 4, smallest // 2, smallest):
            settings = replace(settings, smallest_cell=smallest_cell)
            near = [nearest_cells(numbered(found, settings)) for found in basins]
            for border in (1.0, 0.0, 2.0, 3.0, 4.0, 6.0, 8.0):
                found = [np.where(distance <= border, cells, 0) for cells, distance in near]
                yield replace(settings, border=border), list(map(_counts, examples, found))
