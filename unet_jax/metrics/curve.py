"""What the metrics of the challenge share: their thresholds, their arguments, their result."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, repeat
from typing import NamedTuple, TypeVar

import numpy as np

from unet_jax.example import IGNORED
from unet_jax.hardware import cpu_cores

#: The challenge adds 0.1 ten times, so these doubles are not the literals: the last is below 1.
THRESHOLDS: tuple[float, ...] = tuple(accumulate(repeat(0.1, 10), initial=0.0))

Counts = TypeVar("Counts")  # of one slice


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
    """The score of a metric for which lower is better, float [T]."""
    best = int(np.argmin(values))
    return Score(float(values[best]), thresholds[best], thresholds, tuple(values.tolist()))


def greatest(values: np.ndarray) -> Score:
    """The score of a metric for which higher is better, float [T]."""
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
    function: Callable[[np.ndarray, np.ndarray], Counts],
    labels: Sequence[np.ndarray],
    probabilities: Sequence[np.ndarray],
) -> list[Counts]:
    """The function's result for each slice; slices run in parallel on the CPU's cores.

    Args:
      function: is given the cells, bool [H, W], and the proposal, float64 [H, W].
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.
    """
    labels, probabilities = [[np.asarray(a) for a in arrays] for arrays in (labels, probabilities)]
    _check(labels, probabilities)

    def of_slice(label: np.ndarray, probability: np.ndarray) -> Counts:
        # Compared as float32, a probability of 0.2 would not exceed the threshold 0.2; as the
        # float64 of its float32, as in the challenge, it does.
        proposal = probability.astype(np.float32).astype(np.float64)
        return function(label > 0, np.where(label == IGNORED, 0, proposal))

    with ThreadPoolExecutor(cpu_cores()) as threads:
        return list(threads.map(of_slice, labels, probabilities))


def _check(labels: list[np.ndarray], probabilities: list[np.ndarray]) -> None:
    if not labels or len(labels) != len(probabilities):
        raise ValueError(
            f"Found {len(labels)} slices of labels and {len(probabilities)} of probabilities."
        )
    for s, label in enumerate(labels):
        if label.dtype.kind not in "bui":
            raise ValueError(f"Labels must be bool or integer, slice {s} is {label.dtype}.")
    cell = next((label[label > 0][0] for label in labels if np.any(label > 0)), 1)
    for s, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
        if label.ndim != 2 or label.size == 0:
            raise ValueError(f"Slice {s} has shape {label.shape}, expected [height, width].")
        if label.shape != probability.shape:
            raise ValueError(
                f"Labels of shape {label.shape} and probabilities of shape {probability.shape} "
                f"differ in slice {s}."
            )
        wrong = np.argwhere((label != 0) & (label != cell) & (label != IGNORED))
        if wrong.size:
            y, x = wrong[0]
            raise ValueError(
                f"Labels must be 0 (membrane), {IGNORED} (ignored) or one other value (cell), here "
                f"{cell}; slice {s} holds {label[y, x]} at row {y}, column {x}."
            )
        # Negated, because NaN compares false.
        wrong = np.argwhere(~((probability >= 0) & (probability <= 1)))
        if wrong.size:
            y, x = wrong[0]
            raise ValueError(
                f"Probabilities must lie in [0, 1]; slice {s} holds {probability[y, x]} at row "
                f"{y}, column {x}."
            )
    if all(np.all(label == IGNORED) for label in labels):
        raise ValueError(f"All labels are {IGNORED} (ignored), expected pixels that count.")
