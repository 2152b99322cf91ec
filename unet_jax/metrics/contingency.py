"""How the labelled cells and the predicted segments overlap, for Rand error, V_rand and V_info."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import sparse

from unet_jax.metrics.components import components
from unet_jax.metrics.curve import THRESHOLDS


class Contingency(NamedTuple):
    """How many pixels of labelled cells are in cell i and in segment j.

    Attributes:
      both: the c_ij, i and j >= 1, that are not 0, in any order; int64 [N].
      cells: the pixels of each cell, in a segment or not; int64 [I].
      segments: the pixels of each segment, without those on labelled membrane; int64 [J].
      alone: the pixels in no segment: predicted membrane, each on its own.
    """

    both: np.ndarray
    cells: np.ndarray
    segments: np.ndarray
    alone: int


def contingencies(
    cell: np.ndarray, proposal: np.ndarray, segment: Callable[[np.ndarray], np.ndarray]
) -> Iterator[Contingency]:
    """The contingency table of one slice at each threshold.

    Args:
      cell: the labels, bool [H, W]; cells are the 4-connected components.
      proposal: probability of cell, float64 [H, W].
      segment: makes segments, int32 [H, W], 0 = none, from the pixels above a threshold, bool
        [H, W].
    """
    truth = components(cell)[cell]
    cells = np.bincount(truth, minlength=1)
    for threshold in THRESHOLDS:
        segmented = segment(proposal > threshold)[cell]
        segments = np.bincount(segmented, minlength=1)
        inside = segmented > 0
        ones = np.ones(np.count_nonzero(inside), np.int64)
        # Sparse, since noise has too many segments for a dense table. tocsr adds up equal (i, j).
        table = sparse.coo_array(
            (ones, (truth[inside], segmented[inside])), (len(cells), len(segments))
        )
        yield Contingency(table.tocsr().data, cells[1:], segments[1:], int(segments[0]))
