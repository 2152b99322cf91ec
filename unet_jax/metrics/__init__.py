"""The metrics of the ISBI 2012 challenge, as in Fiji's official code, and of single cells.

All take a stack of slices, or a list of them that may differ in size. For the metrics of the ISBI
2012 challenge, the positive class is the cell and the negative one the membrane; each slice is
scored by itself (2D), and every pixel counts except those labelled -1, which are treated as
membrane in truth and prediction. Each of them is the best over the challenge's thresholds.

SEG is that of the Cell Tracking Challenge; AP, F1, precision and recall are counted by `matching`.
Each file has the metric and its two halves: what is counted in one slice at each threshold
(`pixel_counts`), and the score from the counts of several slices (`pixel_score`).
"""

from unet_jax.metrics.curve import THRESHOLDS, Score
from unet_jax.metrics.information import v_info
from unet_jax.metrics.matching import OVERLAPS, Matching, matching
from unet_jax.metrics.pixel import pixel_error
from unet_jax.metrics.rand import rand_error, v_rand
from unet_jax.metrics.seg import SegScore, seg
from unet_jax.metrics.warping import WarpingScore, warping_error

__all__ = [
    "OVERLAPS",
    "THRESHOLDS",
    "Matching",
    "Score",
    "SegScore",
    "WarpingScore",
    "matching",
    "pixel_error",
    "rand_error",
    "seg",
    "v_info",
    "v_rand",
    "warping_error",
]
