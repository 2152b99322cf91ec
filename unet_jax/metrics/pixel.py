"""Pixel error: the simplest metric, blind to the difference between a shift and a merger."""

import numpy as np

from unet_jax.metrics.curve import THRESHOLDS, Score, f_scores, least, of_slices


def pixel_error(labels: np.ndarray, probabilities: np.ndarray) -> Score:
    """1 - F-score of the cell pixels, counted over all slices.

    Without any cell, neither labelled nor predicted, the error is 0.

    Args:
      labels: bool or integer [S, H, W], 0 = membrane, any one other value = cell.
      probabilities: float [S, H, W] in [0, 1], of cell; rounded to float32 as in the challenge.

    Raises:
      ValueError: an argument is none of this; slices are counted from 0.
    """
    counts = np.sum(of_slices(_counts, labels, probabilities), axis=0)
    return least(1 - f_scores(counts, undefined=1.0))


def _counts(cell, proposal):
    """TP, TP + FP and TP + FN at each threshold, [T, 3]."""
    exceeded = np.searchsorted(THRESHOLDS, proposal)  # so many thresholds
    true_positives, predicted = (
        # How many pixels exceed more than k thresholds, for each k.
        np.cumsum(np.bincount(group, minlength=len(THRESHOLDS) + 1)[:0:-1])[::-1]
        for group in (exceeded[cell], exceeded.ravel())
    )
    return np.stack([true_positives, predicted, np.full_like(predicted, cell.sum())], axis=-1)
