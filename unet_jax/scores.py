"""The scores of predictions on annotated images, and of two baselines without a network."""

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from unet_jax.example import IGNORED, Example
from unet_jax.metrics import pixel_error, rand_error


def em_errors(examples: list[Example], cell: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Pixel error and Rand error of the cell probabilities, as the ISBI 2012 challenge has them.

    Images of different sizes are filled up with membrane, and ignored pixels count as membrane in
    truth and prediction: neither metric counts membrane that both agree on.

    Args:
      examples: whose labels are the truth; every class above 0 is cell.
      cell: probability of cell for each, float [H, W], in [0, 1].

    Returns:
      `{"pixel_error": {"value": ..., "threshold": ...}, "rand_error": ...}`
    """
    shape = np.max([e.labels.shape for e in examples], axis=0)
    truth = np.zeros((len(examples), *shape), np.uint8)
    proposal = np.zeros(truth.shape, np.float32)
    for i, (example, probability) in enumerate(zip(examples, cell, strict=True)):
        height, width = example.labels.shape
        truth[i, :height, :width] = example.labels > 0
        proposal[i, :height, :width] = np.where(example.labels == IGNORED, 0, probability)
    scores = {
        "pixel_error": pixel_error(truth, proposal),
        "rand_error": rand_error(truth, proposal),
    }
    return {
        name: {"value": score.value, "threshold": score.threshold} for name, score in scores.items()
    }


def class_scores(
    examples: list[Example], probabilities: list[np.ndarray], class_names: list[str]
) -> dict[str, dict[str, float]]:
    """Intersection over union of each class with the most probable one, over all pixels counted.

    NaN-free: a class that occurs neither in truth nor prediction is left out.
    """
    classes = len(class_names)
    confusion = np.zeros((classes, classes), np.int64)
    for example, probability in zip(examples, probabilities, strict=True):
        counted = example.labels != IGNORED
        pairs = example.labels[counted] * classes + probability.argmax(-1)[counted]
        confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return {
        "intersection_over_union": {
            name: float(both[c] / either[c]) for c, name in enumerate(class_names) if either[c]
        }
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
