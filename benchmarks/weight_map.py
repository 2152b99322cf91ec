"""Time of the weight map (Eq. 2) against the number of cells, beside one distance transform each.

1024x1024 pixels of round cells that touch or nearly do. Beyond 100 cells the distance transforms
are extrapolated.
"""

import jax
import numpy as np
from scipy import ndimage

from benchmarks.side_by_side import alternate, rounded
from unet_jax.weight_map import weight_map

_MEASURED = 100


def rows(quick):
    """One row for each number of cells."""
    side = 128 if quick else 1024
    compiled = jax.jit(weight_map)
    weights = np.zeros(2, np.float32)
    for count in (10, 100) if quick else (10, 100, 1000, 10_000):
        instances = cells(count, side)
        labels = (instances > 0).astype(np.int32)
        seconds = alternate(
            {
                "ours": lambda a=labels, b=instances: compiled(a, b, weights).block_until_ready(),
                "brute force": lambda b=instances: distances(b),
            },
            rounds=3,
        )
        ours, theirs = np.median(seconds["ours"]), np.median(seconds["brute force"])
        found = int(instances.max())
        row = {
            "cells": found,
            "seconds": rounded(ours),
            "brute_force_seconds": rounded(theirs * max(found / _MEASURED, 1)),
            "ours_over_it": rounded(ours / (theirs * max(found / _MEASURED, 1))),
        }
        if found <= _MEASURED:
            expected = separation(distances(instances), instances)
            difference = np.abs(compiled(labels, instances, weights) - expected)
            row["largest_difference"] = rounded(float(difference[expected > 0.01].max()))
        yield row


def cells(count, side):
    """int32 [side, side]: about so many round cells on a grid, touching or nearly so."""
    across = round(count**0.5)
    pitch = side / across
    y, x = np.indices((side, side)) / pitch
    instances = 1 + y.astype(int) * across + x.astype(int)
    inside = np.hypot(y % 1 - 0.5, x % 1 - 0.5) < 0.48
    return np.where(inside, instances, 0).astype(np.int32)


def distances(instances):
    """The distance of each pixel to each of the first cells."""
    largest = min(int(instances.max()), _MEASURED)
    return [ndimage.distance_transform_edt(instances != cell) for cell in range(1, largest + 1)]


def separation(distances, instances, w0=10.0, sigma=5.0):
    """The second term of Eq. 2 as it is written."""
    d1, d2 = np.partition(distances, 1, axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)
