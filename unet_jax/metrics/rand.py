"""Rand error and V_rand: is a pair of pixels that is in one cell predicted to be in one?

With c_ij pixels in cell i of the labels and segment j of the prediction, where j = 0 is its
membrane, whose pixels each count as a segment of their own, and c0 = sum_i c_i0:

    TP = sum_{i,j>=1} c_ij^2 + c0
    TP + FP = sum_{j>=1} (sum_i c_ij)^2 + c0
    TP + FN = sum_i (sum_{j>=0} c_ij)^2

Labelled membrane, i = 0, does not count.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from unet_jax.metrics.components import components
from unet_jax.metrics.contingency import Contingency, contingencies
from unet_jax.metrics.curve import Score, f_scores, greatest, least, of_slices
from unet_jax.metrics.thinning import thinned


def rand_error(labels: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> Score:
    """1 - F-score of the pairs of pixels in one cell, counted over all slices.

    Segments are the 4-connected components of the predicted cells.

    A slice without a labelled cell has no pairs and adds nothing, whereas in Fiji it makes the
    error of the whole stack 1 (0 / 0 pairs); here the error is 1 only if no slice has a labelled
    cell.

    Args:
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.
    """

    def of_slice(cell: np.ndarray, proposal: np.ndarray) -> np.ndarray:
        return pair_counts(contingencies(cell, proposal, components))

    return rand_score(of_slices(of_slice, labels, probabilities))


def v_rand(labels: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> Score:
    """F-score of the pairs of pixels in one cell after thinning, averaged over the slices.

    Higher is better. Segments are the predicted cells after their membranes have been thinned to
    lines. The score of a slice without a labelled cell is 0.

    Args:
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.

    Examples:
      >>> cells = np.array([[1, 1, 0, 1, 1]])
      >>> v_rand([cells], [np.float32(cells)]).value
      1.0
    """

    def of_slice(cell: np.ndarray, proposal: np.ndarray) -> np.ndarray:
        return pair_counts(contingencies(cell, proposal, thinned))

    return v_rand_score(of_slices(of_slice, labels, probabilities))


def rand_score(counts: Sequence[np.ndarray]) -> Score:
    """The Rand error of slices from their `pair_counts`."""
    return least(1 - f_scores(np.sum(counts, axis=0), undefined=0.0))


def v_rand_score(counts: Sequence[np.ndarray]) -> Score:
    """V_rand of slices from their `pair_counts` after thinning."""
    return greatest(f_scores(np.array(counts), undefined=0.0).mean(axis=0))


def pair_counts(tables: Iterable[Contingency]) -> np.ndarray:
    """TP, TP + FP and TP + FN of one slice at each threshold, int64 [T, 3]."""
    return np.array(
        [
            (
                np.sum(table.both**2) + table.alone,
                np.sum(table.segments**2) + table.alone,
                np.sum(table.cells**2),
            )
            for table in tables
        ]
    )
