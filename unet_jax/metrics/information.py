"""V_info: how much the labelled cells and the predicted segments tell about each other."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.special import xlogy

from unet_jax.metrics.contingency import Contingency, contingencies
from unet_jax.metrics.curve import Score, greatest, of_slices
from unet_jax.metrics.thinning import thinned


def v_info(labels: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> Score:
    """Information-theoretic F-score after thinning, averaged over the slices.

    Higher is better. Segments are the predicted cells after their membranes have been thinned to
    lines, where each pixel of a line is a segment of its own. T is the cell of a pixel and S its
    segment, for the n pixels of labelled cells, and I is their mutual information:

        I = H(T) + H(S) - H(T, S),   precision = I / H(T),   recall = I / H(S)

    A slice scores 0 if it has fewer than two labelled cells or only one segment.

    Args:
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.
    """

    def of_slice(cell: np.ndarray, proposal: np.ndarray) -> np.ndarray:
        return information_f_scores(contingencies(cell, proposal, thinned))

    return v_info_score(of_slices(of_slice, labels, probabilities))


def v_info_score(per_slice: Sequence[np.ndarray]) -> Score:
    """V_info of slices from their `information_f_scores` after thinning."""
    return greatest(np.mean(per_slice, axis=0))


def information_f_scores(tables: Iterable[Contingency]) -> np.ndarray:
    """F of one slice at each threshold, float64 [T]."""
    return np.array([_f_score(table) for table in tables])


def _f_score(table: Contingency) -> float:
    n = table.cells.sum()
    if n == 0:
        return 0.0
    # A pixel on its own has the probability 1 / n.
    alone = table.alone / n * np.log(n)
    entropy_cells = _entropy(table.cells, n)
    entropy_segments = _entropy(table.segments, n) + alone
    if entropy_cells == 0 or entropy_segments == 0:
        return 0.0
    # Never 0: each cell lies in one segment or has pixels on a line.
    shared = entropy_cells + entropy_segments - (_entropy(table.both, n) + alone)
    precision, recall = shared / entropy_cells, shared / entropy_segments
    return 2 * precision * recall / (precision + recall)


def _entropy(counts: np.ndarray, n: int) -> float:
    """- sum p ln p for p = counts / n."""
    return -np.sum(xlogy(counts / n, counts / n))
