"""What the metrics of the challenge share: their thresholds, their arguments, their result."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, repeat
from typing import Any, NamedTuple

import numpy as np

#: The challenge adds 0.1 ten times, so these doubles are not the literals: the last is below 1.
THRESHOLDS = tuple(accumulate(repeat(0.1, 10), initial=0.0))


class Score(NamedTuple):
    """A metric at its best threshold, and at all of them.

    Attributes:
      value: the metric, in [0, 1].
      threshold: the first of `thresholds` that gives `value`.
      thresholds: a pixel is predicted to be cell where its probability exceeds the threshold.
      values: the metric at each threshold.
    """

    value: float
    threshold: float
    thresholds: tuple[float, ...]
    values: tuple[float, ...]


def least(values: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> Score:
    """The score of an error, float [T]."""
    best = int(np.argmin(values))
    return Score(float(values[best]), thresholds[best], thresholds, tuple(values.tolist()))


def greatest(values: np.ndarray) -> Score:
    """The score of what is better the greater it is, float [T]."""
    best = int(np.argmax(values))
    return Score(float(values[best]), THRESHOLDS[best], THRESHOLDS, tuple(values.tolist()))


def f_scores(counts: np.ndarray, undefined: float) -> np.ndarray:
    """F = 2 TP / ((TP + FP) + (TP + FN)), the harmonic mean of precision and recall.

    Args:
      counts: TP, TP + FP and TP + FN, [..., 3].
      undefined: F where all three are 0.

    Returns:
      float64 [...].
    """
    true_positives, predicted, true = np.moveaxis(counts, -1, 0)
    total = predicted + true
    return np.divide(
        2 * true_positives, total, out=np.full(total.shape, undefined), where=total > 0
    )


def of_slices(
    function: Callable[[np.ndarray, np.ndarray], Any],
    labels: np.ndarray,
    probabilities: np.ndarray,
) -> list:
    """What the function gives for each slice, which run beside each other on the CPU's cores.

    Args:
      function: is given the cells, bool [H, W], and the proposal, float64 [H, W].
      labels: bool or integer [S, H, W], 0 = membrane, any one other value = cell.
      probabilities: float [S, H, W] in [0, 1], of cell; rounded to float32 as in the challenge.

    Raises:
      ValueError: an argument is none of this; slices are counted from 0.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    _check(labels, probabilities)

    def of_slice(label_slice, probability_slice):
        # Compared as float32, a probability of 0.2 would not exceed the threshold 0.2; as the
        # float64 of its float32, as in the challenge, it does.
        return function(label_slice > 0, probability_slice.astype(np.float32).astype(np.float64))

    with ThreadPoolExecutor(_cores()) as threads:
        return list(threads.map(of_slice, labels, probabilities))


def _check(labels, probabilities):
    if labels.shape != probabilities.shape:
        raise ValueError(
            f"Labels of shape {labels.shape} and probabilities of shape {probabilities.shape} "
            "differ."
        )
    if labels.ndim != 3 or labels.size == 0:
        raise ValueError(f"Expected a stack [slices, height, width], found shape {labels.shape}.")
    if labels.dtype.kind not in "bui":
        raise ValueError(f"Labels must be bool or integer, found {labels.dtype}.")

    cell = max(labels.flat[np.argmax(labels != 0)], 1)  # the first value that is not 0
    wrong = np.argwhere((labels != 0) & (labels != cell))
    if wrong.size:
        s, y, x = wrong[0]
        raise ValueError(
            f"Labels must be 0 (membrane) or one other value (cell), here {cell}; slice {s} holds "
            f"{labels[s, y, x]} at row {y}, column {x}."
        )
    # Negated, because NaN compares false.
    wrong = np.argwhere(~((probabilities >= 0) & (probabilities <= 1)))
    if wrong.size:
        s, y, x = wrong[0]
        raise ValueError(
            f"Probabilities must lie in [0, 1]; slice {s} holds {probabilities[s, y, x]} at row "
            f"{y}, column {x}."
        )


def _cores() -> int:
    # A process may be confined to some of the cores; macOS and Windows do not tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
