"""Thinning of predicted membranes to lines, so that their width does not count.

This is the flooding of Soille and Vincent (1990), "Determining watersheds in digital pictures via
flooding simulations": water rises from the cells over the membranes, and a line of membrane remains
where the water of two cells meets.
"""

import numpy as np

from unet_jax.compiled import compiled
from unet_jax.metrics.components import components

# States of a pixel beside the segment 1, 2, ... that flooded it.
LINE, DRY, QUEUED, OUTSIDE = 0, -1, -2, -3


def thinned(mask: np.ndarray) -> np.ndarray:
    """The 4-connected components of a bool [H, W], grown until lines separate them.

    Returns:
      int32 [H, W], 0 on the lines, otherwise 1, 2, ...; 1 everywhere if the mask is empty.
    """
    if not mask.any():
        return np.ones(mask.shape, np.int32)
    labels = components(mask)
    labels[~mask] = DRY
    labels = np.pad(labels, 1, constant_values=OUTSIDE)
    _flood(labels)
    return labels[1:-1, 1:-1]


@compiled
def _flood(labels: np.ndarray) -> None:
    """Floods the DRY pixels of an int32 [H + 2, W + 2] whose border is OUTSIDE, in place.

    The result depends on the order of the pixels: column by column, as in the challenge.
    """
    height, width = labels.shape
    state = labels.ravel()  # a view
    steps = (-1, -width, 1, width)  # left, above, right, below
    queue = np.empty(state.size, np.int64)
    first, last = 0, 0
    for x in range(1, width - 1):
        for y in range(1, height - 1):
            pixel = y * width + x
            if state[pixel] != DRY:
                continue
            for step in steps:
                if state[pixel + step] > 0:
                    state[pixel] = QUEUED
                    queue[last] = pixel
                    last += 1
                    break

    while first < last:
        pixel = queue[first]
        first += 1
        label = QUEUED
        beside_line = False  # on a line only as a neighbour of one: a segment may still take it
        for step in steps:
            neighbour = state[pixel + step]
            if neighbour > 0:
                if label == QUEUED or (label == LINE and beside_line):
                    label = neighbour
                elif label > 0 and label != neighbour:
                    label = LINE
                    beside_line = False
            elif neighbour == LINE and label == QUEUED:
                label = LINE
                beside_line = True
            elif neighbour == DRY:
                state[pixel + step] = QUEUED
                queue[last] = pixel + step
                last += 1
        state[pixel] = label
