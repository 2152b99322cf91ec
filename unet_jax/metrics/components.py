"""Cells and segments: pixels joined by a path from side to side, never across a corner."""

import numpy as np
from scipy import ndimage


def components(mask: np.ndarray) -> np.ndarray:
    """The 4-connected components of a bool [H, W]: int32 [H, W], 0 outside, otherwise 1, 2, ..."""
    return ndimage.label(mask)[0]
