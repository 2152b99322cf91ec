"""The metrics of the ISBI 2012 challenge for a stack of slices, as Fiji's official code has them.

The positive class is the cell, the negative one the membrane; every slice stands alone (2D) and
every pixel counts. Each metric is 1 - the best F-score over the challenge's eleven thresholds,
F = 2 TP / ((TP + FP) + (TP + FN)), with the counts summed over the slices.
"""

from collections.abc import Iterator
from itertools import accumulate, repeat
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse

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


def pixel_error(labels: np.ndarray, probabilities: np.ndarray) -> Score:
    """1 - F-score of the cell pixels.

    Without any cell, neither labelled nor predicted, the error is 0.

    Args:
      labels: bool or integer [S, H, W], 0 = membrane, any one other value = cell.
      probabilities: float [S, H, W] in [0, 1], of cell; rounded to float32 as in the challenge.

    Raises:
      ValueError: an argument is none of this; slices are counted from 0.
    """
    counts = np.zeros((len(THRESHOLDS), 3))
    for cell, proposal in _checked_slices(labels, probabilities):
        for k, threshold in enumerate(THRESHOLDS):
            predicted = proposal > threshold
            true_positives = np.count_nonzero(predicted & cell)
            counts[k] += true_positives, np.count_nonzero(predicted), np.count_nonzero(cell)
    return _best(1 - _f_scores(counts, undefined=1.0))


def rand_error(labels: np.ndarray, probabilities: np.ndarray) -> Score:
    """1 - F-score of the pixel pairs that are in one cell, among the labelled cell pixels.

    Cells are 4-connected components. With c_ij pixels in cell i of the labels and cell j of the
    prediction, j = 0 its membrane, whose pixels count as cells of their own, c0 = sum_i c_i0:

        TP = sum_{i,j>=1} c_ij^2 + c0
        TP + FP = sum_{j>=1} (sum_i c_ij)^2 + c0
        TP + FN = sum_i (sum_{j>=0} c_ij)^2

    A slice without a labelled cell has no pairs and adds nothing, while in Fiji it makes the error
    of the whole stack 1 (0 / 0 pairs); here the error is 1 only if no slice has a labelled cell.

    Args:
      labels: bool or integer [S, H, W], 0 = membrane, any one other value = cell.
      probabilities: float [S, H, W] in [0, 1], of cell; rounded to float32 as in the challenge.

    Raises:
      ValueError: an argument is none of this; slices are counted from 0.
    """
    counts = np.zeros((len(THRESHOLDS), 3))
    for cell, proposal in _checked_slices(labels, probabilities):
        truth = _components(cell)
        for k, threshold in enumerate(THRESHOLDS):
            counts[k] += _pair_counts(_contingency(truth, _components(proposal > threshold)))
    return _best(1 - _f_scores(counts, undefined=0.0))


def _checked_slices(labels, probabilities) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each slice the cell mask, bool [H, W], and the proposal, float64 [H, W]."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
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

    for label_slice, probability_slice in zip(labels, probabilities, strict=True):
        # Compared as float32, a probability of 0.2 would not exceed the threshold 0.2; as the
        # float64 of its float32, as in the challenge, it does.
        yield label_slice > 0, probability_slice.astype(np.float32).astype(np.float64)


def _components(mask: np.ndarray) -> np.ndarray:
    """The 4-connected components 1, 2, ... of a mask [H, W], 0 outside."""
    return ndimage.label(mask)[0]


def _contingency(truth: np.ndarray, segments: np.ndarray) -> sparse.csr_array:
    """c_ij, the pixels in cell i of the labels and segment j; row 0, membrane, is left empty."""
    cell = truth > 0
    ones = np.ones(np.count_nonzero(cell), np.int64)
    shape = (truth.max() + 1, segments.max() + 1)
    # Sparse, since noise has too many segments for a dense table. tocsr adds up equal (i, j).
    return sparse.coo_array((ones, (truth[cell], segments[cell])), shape).tocsr()


def _pair_counts(contingency: sparse.csr_array) -> tuple[int, int, int]:
    """TP, TP + FP and TP + FN of the Rand error."""
    cells, segments = contingency.sum(axis=1), contingency.sum(axis=0)
    alone = segments[0]
    true_positives = np.sum(contingency[:, 1:].data ** 2) + alone
    return true_positives, np.sum(segments[1:] ** 2) + alone, np.sum(cells**2)


def _f_scores(counts: np.ndarray, undefined: float) -> np.ndarray:
    """F for each row (TP, TP + FP, TP + FN) of the counts [T, 3]; `undefined` where all are 0."""
    true_positives, predicted, true = counts.T
    total = predicted + true
    return np.divide(
        2 * true_positives, total, out=np.full(total.shape, undefined), where=total > 0
    )


def _best(values: np.ndarray) -> Score:
    """The least of the values, one for each threshold."""
    best = int(np.argmin(values))
    return Score(float(values[best]), THRESHOLDS[best], THRESHOLDS, tuple(values.tolist()))
