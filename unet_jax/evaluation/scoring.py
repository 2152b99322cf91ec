"""The scores of what a network finds in annotated images: in all, in each image, in each fold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from unet_jax.example import Example, separated
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.metrics import OVERLAPS, Matching, Score, SegScore
from unet_jax.metrics.cell_errors import CellErrors, cell_errors
from unet_jax.metrics.matching import matching_score
from unet_jax.metrics.scores import (
    ClassScores,
    EMCounts,
    cell_overlaps,
    class_scores,
    em_counts,
    em_scores,
    em_values,
    seg_score,
)
from unet_jax.metrics.seg import Overlaps


class Measured(NamedTuple):
    """An annotated image with what a network finds in it.

    Attributes:
      example: as it was annotated.
      separated: the same with background between touching cells, see `unet_jax.example.separated`.
      probabilities: float32 [H, W, classes].
      cells: int32 [H, W], the cell found at each pixel, 0 = none.
      counts: what the metrics of the ISBI 2012 challenge count.
      overlaps: which of the cells found overlap with which annotated ones.
      errors: the cells that are wrong in some way.
    """

    example: Example
    separated: Example
    probabilities: np.ndarray
    cells: np.ndarray
    counts: EMCounts
    overlaps: Overlaps
    errors: CellErrors

    @property
    def cell(self) -> np.ndarray:
        """The probability of cell, of any class, float32 [H, W]."""
        return 1 - self.probabilities[..., 0]


@dataclass(frozen=True)
class Scores:
    """The scores of some images together.

    Attributes:
      em: those of the ISBI 2012 challenge by metric, see `unet_jax.metrics.scores.em_scores`.
      seg: of the cells found; None if no cell is annotated.
      matching: of the cells found, at each of `OVERLAPS`; None if no cell is annotated.
      classes: of the most probable class of each pixel.
    """

    em: dict[str, Score | None]
    seg: SegScore | None
    matching: list[Matching] | None
    classes: ClassScores

    def values(self) -> dict[str, float | None]:
        """The value of each metric of `METRICS`, None where it is not defined."""
        return {
            **{metric: score and score.value for metric, score in self.em.items()},
            "seg": self.seg and self.seg.value,
            **self._cell_values(),
            "mean_iou": self.classes.mean_iou,
            "mean_dice": self.classes.mean_dice,
        }

    def _cell_values(self) -> dict[str, float | None]:
        names = ("ap_50", "ap_75", "ap", "f1", "precision", "recall", "panoptic_quality")
        if self.matching is None:
            return dict.fromkeys(names)
        at_50, at_75 = (self.matching[OVERLAPS.index(overlap)] for overlap in (0.5, 0.75))
        mean = float(np.mean([at.average_precision for at in self.matching]))
        of_both = at_50.average_precision, at_75.average_precision, mean
        of_50 = at_50.f1, at_50.precision, at_50.recall, at_50.panoptic_quality
        return dict(zip(names, (*of_both, *of_50), strict=True))


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image among others.

    Attributes:
      name: of the image.
      values: by metric, at the thresholds that are best for all images together; None if a metric
        is not defined.
      cells: how many are annotated.
      found_cells: how many are found.
      errors: how many are missed, false, split and merged, see `cell_errors`; empty for strokes.
    """

    name: str
    values: dict[str, float | None]
    cells: int
    found_cells: int
    errors: dict[str, int]


@dataclass(frozen=True)
class FoldScores:
    """The scores of a fold's network on the part that it was not trained on.

    Attributes:
      images: their names.
      values: by metric, None where it is not defined.
    """

    images: list[str]
    values: dict[str, float | None]


def measure(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray], settings: InstanceSettings
) -> list[Measured]:
    """Finds cells and counts what is right and wrong; images may differ in size.

    Args:
      examples: the truth.
      probabilities: float32 [H, W, classes] in [0, 1] for each, such as from `predict_tiled`.
      settings: how cells are found.
    """
    truths = [separated(example) for example in examples]
    cell = [1 - p[..., 0] for p in probabilities]
    cells = [find_cells(p, settings) for p in cell]
    counts = em_counts(truths, cell)
    overlaps = list(map(cell_overlaps, examples, cells))
    errors = list(map(cell_errors, overlaps))
    return list(map(Measured, examples, truths, probabilities, cells, counts, overlaps, errors))


def score(images: Sequence[Measured], class_names: Sequence[str]) -> Scores:
    """The scores of these images together."""
    examples = [image.example for image in images]
    overlaps = [image.overlaps for image in images]
    return Scores(
        em=em_scores([image.counts for image in images]),
        seg=seg_score(examples, [image.cells for image in images]),
        matching=matching_score(overlaps) if any(o.true_ids.size for o in overlaps) else None,
        classes=class_scores(examples, [image.probabilities for image in images], class_names),
    )


def score_images(
    images: Sequence[Measured], together: Scores, class_names: Sequence[str]
) -> list[ImageScores]:
    """The scores of each image, at the thresholds of the scores of all images, `together`."""
    return [
        ImageScores(
            name=image.example.name,
            values=score([image], class_names).values() | em_values(image.counts, together.em),
            cells=len(np.unique(image.example.instances[image.example.instances > 0])),
            found_cells=int(image.cells.max()),
            errors=image.errors.counts(),
        )
        for image in images
    ]


def score_folds(
    images: Sequence[Measured], sizes: Iterable[int], class_names: Sequence[str]
) -> list[FoldScores]:
    """The scores of each fold; the images are in the order of the folds."""
    rest = iter(images)
    folds = [list(islice(rest, size)) for size in sizes]
    return [
        FoldScores([image.example.name for image in fold], score(fold, class_names).values())
        for fold in folds
    ]
