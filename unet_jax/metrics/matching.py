"""Precision, recall, F1, AP and panoptic quality of single cells found at a minimum overlap.

AP is the average precision of the 2018 Data Science Bowl, StarDist and Cellpose,
TP / (TP + FP + FN), not the area under a curve that COCO calls by this name.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unet_jax.metrics.seg import Overlaps, frames, overlapping

#: Intersections over union that are asked for, of which AP is the mean.
OVERLAPS = tuple(percent / 100 for percent in range(50, 100, 5))


class Matching(NamedTuple):
    """How many cells of all frames together are found, at one overlap.

    Attributes:
      overlap: the smallest intersection over union at which a cell counts as found.
      found: reference cells that are found, the true positives.
      false: result cells that match no reference cell, the false positives.
      missed: reference cells that no result cell matches, the false negatives.
      shared: the intersections over union of the cells found, added up.
    """

    overlap: float
    found: int
    false: int
    missed: int
    shared: float

    @property
    def precision(self) -> float:
        """The share of the result cells that are correct, in [0, 1]; 0 if none is."""
        return self.found / max(self.found + self.false, 1)

    @property
    def recall(self) -> float:
        """The share of the reference cells that are found, in [0, 1]; 0 if none is."""
        return self.found / max(self.found + self.missed, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of both, 2 TP / (2 TP + FP + FN); 0 if nothing is found."""
        return 2 * self.found / max(2 * self.found + self.false + self.missed, 1)

    @property
    def average_precision(self) -> float:
        """TP / (TP + FP + FN), in [0, 1]; 0 if nothing is found."""
        return self.found / max(self.found + self.false + self.missed, 1)

    @property
    def panoptic_quality(self) -> float:
        """F1 times the mean intersection over union of the cells found, in [0, 1]."""
        return 2 * self.shared / max(2 * self.found + self.false + self.missed, 1)


def matching(
    reference: np.ndarray | Sequence[np.ndarray],
    result: np.ndarray | Sequence[np.ndarray],
    overlaps: Sequence[float] = OVERLAPS,
) -> list[Matching]:
    """Counts the cells that are found, false and missed; each cell is matched at most once.

    Args:
      reference: frames of integer ids, [S, H, W] or a list of [H, W] that may differ in size;
        0 = no cell.
      result: the same number of frames of the same sizes.
      overlaps: intersections over union, each in [0.5, 1].

    Returns:
      One `Matching` for each of the overlaps, over all frames.

    Raises:
      ValueError: an argument is not as described; frames are counted from 0.

    Examples:
      >>> (at_half,) = matching([np.array([[1, 1, 0, 2]])], [np.array([[5, 5, 0, 0]])], [0.5])
      >>> at_half.found, at_half.missed, at_half.average_precision
      (1, 1, 0.5)
    """
    if not all(0.5 <= overlap <= 1 for overlap in overlaps):
        raise ValueError(f"Overlaps must lie in [0.5, 1], not {tuple(overlaps)}.")
    counts = [overlapping(true, found) for true, found in frames(reference, result)]
    return matching_score(counts, overlaps)


def matching_score(
    counts: Sequence[Overlaps], overlaps: Sequence[float] = OVERLAPS
) -> list[Matching]:
    """One `Matching` for each of the overlaps, over all frames together, see `overlapping`."""
    reference = sum(frame.true_ids.size for frame in counts)
    result = sum(frame.found_ids.size for frame in counts)

    def at(overlap):
        pairs = [_matched(frame, overlap) for frame in counts]
        found, shared = sum(number for number, _ in pairs), sum(total for _, total in pairs)
        return Matching(overlap, found, result - found, reference - found, shared)

    return [at(overlap) for overlap in overlaps]


def _matched(frame: Overlaps, overlap: float) -> tuple[int, float]:
    """How many pairs there can be of which no two share a cell, and their overlaps added up.

    Two pairs share a cell only if it is divided into two halves exactly, one for each: then both
    are at 0.5, and neither half is in a third pair. So each repetition is one pair too many.
    """
    enough = frame.overlap >= overlap
    true, found = frame.true[enough], frame.found[enough]
    number = len(np.unique(true)) + len(np.unique(found)) - len(true)
    return number, float(frame.overlap[enough].sum()) - 0.5 * (len(true) - number)
