"""The scores of predictions on annotated images, and of two baselines without a network."""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from unet_jax.example import IGNORED, Example
from unet_jax.metrics import pixel_error, rand_error, seg, v_info, v_rand, warping_error


def em_stack(examples: list[Example], cell: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction as the metrics of the ISBI 2012 challenge take them.

    Images of different sizes are filled up with membrane, and ignored pixels count as membrane in
    truth and prediction: no metric counts membrane that both agree on.

    Args:
      examples: whose labels are the truth; every class above 0 is cell.
      cell: probability of cell for each, float [H, W], in [0, 1].

    Returns:
      uint8 [S, H, W], 0 = membrane, 1 = cell, and float32 [S, H, W].
    """
    shape = np.max([e.labels.shape for e in examples], axis=0)
    truth = np.zeros((len(examples), *shape), np.uint8)
    proposal = np.zeros(truth.shape, np.float32)
    for i, (example, probability) in enumerate(zip(examples, cell, strict=True)):
        height, width = example.labels.shape
        truth[i, :height, :width] = example.labels > 0
        proposal[i, :height, :width] = np.where(example.labels == IGNORED, 0, probability)
    return truth, proposal


def em_errors(examples: list[Example], cell: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Pixel error and Rand error of the cell probabilities, see `em_stack`.

    Returns:
      `{"pixel_error": {"value": ..., "threshold": ...}, "rand_error": ...}`
    """
    stack = em_stack(examples, cell)
    scores = {"pixel_error": pixel_error(*stack), "rand_error": rand_error(*stack)}
    return {
        name: {"value": score.value, "threshold": score.threshold} for name, score in scores.items()
    }


def em_scores(examples: list[Example], cell: list[np.ndarray]) -> dict[str, Any]:
    """All five metrics of the challenge, the warping error in both settings, see `em_stack`.

    Returns:
      The results of `unet_jax.metrics` by name.
    """
    stack = em_stack(examples, cell)
    return {
        "pixel_error": pixel_error(*stack),
        "rand_error": rand_error(*stack),
        "warping_error": warping_error(*stack),
        "warping_error_2016": warping_error(*stack, setting="2016"),
        "v_rand": v_rand(*stack),
        "v_info": v_info(*stack),
    }


def seg_score(examples: list[Example], cells: list[np.ndarray]) -> dict[str, Any] | None:
    """SEG of the cells found, int [H, W] for each example.

    Returns:
      `{"value": ..., "per_object": [...]}`, or None if no cell is annotated.
    """
    if not any(example.instances.any() for example in examples):
        return None
    score = seg([example.instances for example in examples], cells)
    return {"value": score.value, "per_object": list(score.per_object)}


def class_scores(
    examples: list[Example], probabilities: list[np.ndarray], class_names: list[str]
) -> dict[str, Any]:
    """How well the most probable class of each pixel is the true one, over all pixels that count.

    Returns:
      `intersection_over_union` by class, without those that occur neither in truth nor prediction;
      `mean_iou`, `{"value": their mean, None if there are none}`; `confusion`, pixels, a row for
      each true class, a column for each class found.
    """
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    for example, probability in zip(examples, probabilities, strict=True):
        counted = example.labels != IGNORED
        pairs = example.labels[counted] * classes + probability.argmax(-1)[counted]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    overlaps = {name: float(both[c] / either[c]) for c, name in enumerate(class_names) if either[c]}
    return {
        "intersection_over_union": overlaps,
        "mean_iou": {"value": float(np.mean(list(overlaps.values()))) if overlaps else None},
        "confusion": confusion.tolist(),
    }


def baselines(examples: list[Example]) -> dict[str, Any]:
    """What needs no network: one class everywhere, and the blurred grey value as a probability.

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
            name: min(bright[name], dark[name], key=lambda error: error["value"]) for name in bright
        },
    }
