"""The scores of predictions on annotated images, and of two baselines without a network."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from unet_jax.example import IGNORED, Example
from unet_jax.metrics import Score, SegScore, pixel_error, rand_error, seg
from unet_jax.metrics.components import components
from unet_jax.metrics.contingency import contingencies
from unet_jax.metrics.curve import of_slices
from unet_jax.metrics.information import information_f_scores, v_info_score
from unet_jax.metrics.pixel import pixel_counts, pixel_score
from unet_jax.metrics.rand import pair_counts, rand_score, v_rand_score
from unet_jax.metrics.seg import Overlaps, overlapping
from unet_jax.metrics.thinning import thinned
from unet_jax.metrics.warping import Places, splits_and_merges, warping_score


class EMCounts(NamedTuple):
    """What the metrics of the ISBI 2012 challenge count in one image, at each threshold.

    Attributes:
      cells: the annotated cells, 4-connected.
      counted: the pixels that count, all but the ignored ones.
      pixels: see `pixel_counts`.
      pairs: see `pair_counts`.
      pairs_thinned: see `pair_counts`.
      information: see `information_f_scores`.
      warping: see `splits_and_merges`.
      warping_2016: see `splits_and_merges`.
    """

    cells: int
    counted: int
    pixels: np.ndarray
    pairs: np.ndarray
    pairs_thinned: np.ndarray
    information: np.ndarray
    warping: list[Places]
    warping_2016: list[Places]


class ClassScores(NamedTuple):
    """How often the most probable class of each pixel is the true one, over all pixels that count.

    Attributes:
      intersection_over_union: by class, without those that occur neither in truth nor prediction.
      mean_iou: their mean, None if there are none.
      dice: by class, twice the intersection over the sum of both, for the same classes.
      mean_dice: their mean, None if there are none.
      confusion: pixels, int64 [classes, classes]; a row for each true class, a column for each
        class found.
    """

    intersection_over_union: dict[str, float]
    mean_iou: float | None
    dice: dict[str, float]
    mean_dice: float | None
    confusion: np.ndarray


def em_counts(examples: Sequence[Example], cell: Sequence[np.ndarray]) -> list[EMCounts]:
    """The counts of each image; `em_scores` makes scores of the counts of several images.

    Args:
      examples: whose labels are the truth; every class above 0 is cell.
      cell: probability of cell for each, float [H, W], in [0, 1].
    """

    def of_image(label: np.ndarray, proposal: np.ndarray) -> dict[str, Any]:
        pairs = list(contingencies(label, proposal, components))
        after_thinning = list(contingencies(label, proposal, thinned))
        return {
            "cells": len(pairs[0].cells),
            "pixels": pixel_counts(label, proposal),
            "pairs": pair_counts(pairs),
            "pairs_thinned": pair_counts(after_thinning),
            "information": information_f_scores(after_thinning),
            "warping": splits_and_merges(label, proposal, "2015"),
            "warping_2016": splits_and_merges(label, proposal, "2016"),
        }

    counted = [int(np.count_nonzero(example.labels != IGNORED)) for example in examples]
    per_image = of_slices(of_image, _truth(examples), cell)
    return [EMCounts(counted=n, **of) for n, of in zip(counted, per_image, strict=True)]


def em_scores(images: Sequence[EMCounts]) -> dict[str, Score | None]:
    """All five metrics of the challenge, the warping error in both settings, by name.

    Unlike in the challenge, images without an annotated cell are left out of Rand error and V_rand,
    and those with fewer than two out of V_info: they would get the worst score whatever is
    predicted.

    Returns:
      None for a metric for which no image is left; None for all if there is no annotated cell,
      because no threshold could then be distinguished from one at which nothing is found.
    """
    scores = _curves(images)
    return scores if scores["rand_error"] else dict.fromkeys(scores)


def em_values(image: EMCounts, best: dict[str, Score | None]) -> dict[str, float | None]:
    """The metrics of one image at the thresholds that are best for all images, by name.

    Args:
      image: one of them.
      best: `em_scores` of all images.

    Returns:
      None where a metric is not defined, see `em_scores`.
    """
    return {
        name: curve.values[curve.thresholds.index(score.threshold)]
        if curve and (score := best[name])
        else None
        for name, curve in _curves([image]).items()
    }


def _curves(images: Sequence[EMCounts]) -> dict[str, Score | None]:
    """As `em_scores`, but pixel error and warping errors are scored even if there is no cell."""
    images = [image for image in images if image.counted]
    with_cells = [image for image in images if image.cells > 0]
    with_several = [image for image in images if image.cells > 1]
    counted = sum(image.counted for image in images)

    def score(
        of: Callable[..., Score], some: list[EMCounts], counts: str, *arguments: Any
    ) -> Score | None:
        return of([getattr(image, counts) for image in some], *arguments) if some else None

    return {
        "pixel_error": score(pixel_score, images, "pixels"),
        "rand_error": score(rand_score, with_cells, "pairs"),
        "warping_error": score(warping_score, images, "warping", counted, "2015"),
        "warping_error_2016": score(warping_score, images, "warping_2016", counted, "2016"),
        "v_rand": score(v_rand_score, with_cells, "pairs_thinned"),
        "v_info": score(v_info_score, with_several, "information"),
    }


def em_errors(examples: Sequence[Example], cell: Sequence[np.ndarray]) -> dict[str, Score]:
    """Only pixel error and Rand error, much faster than `em_counts`; see there for the arguments.

    Returns:
      `{"pixel_error": ..., "rand_error": ...}`; empty if there is no annotated cell, see
      `em_scores`.
    """
    truth = _truth(examples)
    if not any((labels > 0).any() for labels in truth):
        return {}
    return {"pixel_error": pixel_error(truth, cell), "rand_error": rand_error(truth, cell)}


def _truth(examples: Sequence[Example]) -> list[np.ndarray]:
    """All classes above 0 as cell."""
    return [np.minimum(example.labels, 1) for example in examples]


def seg_score(examples: Sequence[Example], cells: Sequence[np.ndarray]) -> SegScore | None:
    """SEG of the cells found, int [H, W] for each example; None if no cell is annotated.

    As in the Cell Tracking Challenge, the whole area of a cell counts, also on ignored pixels.
    """
    if not any(example.instances.any() for example in examples):
        return None
    return seg([example.instances for example in examples], cells)


def cell_overlaps(example: Example, cells: np.ndarray) -> Overlaps:
    """The overlaps that `matching` counts in one image, int [H, W], without ignored pixels.

    A cell found mostly on ignored pixels is left out: it is not known whether there is one.
    """
    ignored = example.labels == IGNORED
    on_ignored = np.bincount(cells[ignored], minlength=int(cells.max()) + 1)
    left_out = 2 * on_ignored > np.bincount(cells.ravel())
    return overlapping(example.instances, np.where(left_out[cells] | ignored, 0, cells))


def class_scores(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray], class_names: Sequence[str]
) -> ClassScores:
    """The class scores of predictions, float [H, W, classes] for each example."""
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    for example, probability in zip(examples, probabilities, strict=True):
        counted = example.labels != IGNORED
        pairs = example.labels[counted] * classes + probability.argmax(-1)[counted]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    overlaps = {name: float(both[c] / either[c]) for c, name in enumerate(class_names) if either[c]}
    dice = {name: 2 * overlap / (1 + overlap) for name, overlap in overlaps.items()}
    mean_iou, mean_dice = (
        float(np.mean(list(of_class.values()))) if of_class else None
        for of_class in (overlaps, dice)
    )
    return ClassScores(overlaps, mean_iou, dice, mean_dice, confusion)


def baselines(examples: Sequence[Example]) -> dict[str, dict[str, Score]]:
    """`em_errors` without a network: one class everywhere, and the blurred grey value as `cell`.

    The grey values are scaled to [0, 1] by each image's range, then blurred by a Gaussian of 1
    pixel; cells may be the bright or the dark side, whichever is better.
    """
    blurred = []
    for example in examples:
        grey = example.image.reshape(*example.labels.shape, -1).mean(-1, dtype=np.float32)
        grey = (grey - grey.min()) / max(np.ptp(grey), np.finfo(np.float32).tiny)
        blurred.append(gaussian_filter(grey, 1).clip(0, 1))
    bright, dark = em_errors(examples, blurred), em_errors(examples, [1 - b for b in blurred])
    return {
        "one class everywhere": em_errors(examples, [np.ones(e.labels.shape) for e in examples]),
        "blurred grey value": {
            name: min(bright[name], dark[name], key=lambda error: error.value) for name in bright
        },
    }
