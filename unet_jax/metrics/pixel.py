"""Pixel error: the simplest metric, blind to the difference between a shift and a merger."""

from collections.abc import Sequence

import numpy as np

from unet_jax.metrics.curve import THRESHOLDS, Score, f_scores, least, of_slices


def pixel_error(labels: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> Score:
    """1 - F-score of the cell pixels, counted over all slices.

    Without any cell, neither labelled nor predicted, the error is 0.

    Args:
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.

    Examples:
      >>> pixel_error([[[0, 1, 1, 1]]], [[[0.6, 0.3, 0.8, 0.9]]]).value
      0.1428571428571429
    """
    return pixel_score(of_slices(pixel_counts, labels, probabilities))


def pixel_score(counts: Sequence[np.ndarray]) -> Score:
    """The pixel error of slices from their `pixel_counts`."""
    return least(1 - f_scores(np.sum(counts, axis=0), undefined=1.0))


def pixel_counts(cell: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """TP, TP + FP and TP + FN of one slice at each threshold, int64 [T, 3].

    Args:
      cell: the labels, bool [H, W].
      proposal: probability of cell, float64 [H, W].
    """
    exceeded = np.searchsorted(THRESHOLDS, proposal)  # so many thresholds
    true_positives, predicted = (
        # How many pixels exceed more than k thresholds, for each k.
        np.cumsum(np.bincount(group, minlength=len(THRESHOLDS) + 1)[:0:-1])[::-1]
        for group in (exceeded[cell], exceeded.ravel())
    )
    return np.stack([true_positives, predicted, np.full_like(predicted, cell.sum())], axis=-1)
