"""Errors in single cells: those that are missed, false, split and merged."""

from typing import NamedTuple

import numpy as np

from unet_jax.metrics.seg import Overlaps

# The intersection over union from which on a cell counts as found.
_FOUND = 0.5


class CellErrors(NamedTuple):
    """The ids of the cells of an image that are wrong in some way.

    Attributes:
      missed: reference cells that no result cell matches, and that are neither split nor merged.
      false: result cells that match no reference cell, and are neither a piece of a split one nor a
        merger of several.
      split: reference cells that contain more than half of each of two or more result cells.
      merged: result cells that cover more than half of each of two or more reference cells.
    """

    missed: np.ndarray
    false: np.ndarray
    split: np.ndarray
    merged: np.ndarray

    def counts(self) -> dict[str, int]:
        """The number of cells of each kind, by its name."""
        return {kind: len(ids) for kind, ids in self._asdict().items()}


def cell_errors(overlaps: Overlaps) -> CellErrors:
    """The errors in one image, from the overlaps of its cells."""
    true, found, count = overlaps.true, overlaps.found, len(overlaps.true_ids)
    is_piece, is_covered = overlaps.inside > 0.5, overlaps.covered > 0.5
    split = np.bincount(true[is_piece], minlength=count) > 1
    merged = np.bincount(found[is_covered], minlength=len(overlaps.found_ids)) > 1
    # What has its part in one of these, or is found.
    is_match = overlaps.overlap >= _FOUND
    true_seen, found_seen = split.copy(), merged.copy()
    true_seen[true[is_match | (is_covered & merged[found])]] = True
    found_seen[found[is_match | (is_piece & split[true])]] = True
    return CellErrors(
        missed=overlaps.true_ids[~true_seen],
        false=overlaps.found_ids[~found_seen],
        split=overlaps.true_ids[split],
        merged=overlaps.found_ids[merged],
    )
