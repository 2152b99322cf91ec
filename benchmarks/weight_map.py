"""Time of the weight map (Eq. 2) against one distance transform for each cell, side by side.

python -m benchmarks.weight_map
"""

import json
import time

import jax
import numpy as np
from scipy import ndimage

from unet_jax.environment import versions
from unet_jax.weight_map import weight_map


def cells(count, side=512):
    """int32 [side, side]: about so many round cells on a grid, touching or nearly so."""
    across = round(count**0.5)
    pitch = side / across
    y, x = np.indices((side, side)) / pitch
    instances = 1 + y.astype(int) * across + x.astype(int)
    inside = np.hypot(y % 1 - 0.5, x % 1 - 0.5) < 0.48
    return np.where(inside, instances, 0).astype(np.int32)


def brute_force(instances, w0=10.0, sigma=5.0):
    """The second term of Eq. 2 as it is written."""
    distances = [
        ndimage.distance_transform_edt(instances != cell)
        for cell in np.unique(instances[instances > 0])
    ]
    d1, d2 = np.partition(distances, 1, axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)


def median_seconds(function, repetitions):
    """Median wall time of a call."""
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main():
    """Prints a JSON object for each number of cells."""
    compiled = jax.jit(weight_map)
    weights = np.zeros(2, np.float32)
    for count in (25, 100, 196, 400):
        instances = cells(count)
        labels = (instances > 0).astype(np.int32)
        found = np.asarray(compiled(labels, instances, weights))
        expected = brute_force(instances)
        ours = median_seconds(
            lambda a=labels, b=instances: compiled(a, b, weights).block_until_ready(), 15
        )
        theirs = median_seconds(lambda b=instances: brute_force(b), 1)
        print(
            json.dumps(
                {
                    "cells": int(len(np.unique(instances)) - 1),
                    "seconds": round(ours, 4),
                    "brute_force_seconds": round(theirs, 2),
                    "ratio": round(theirs / ours),
                    "largest_difference": float(np.abs(found - expected)[expected > 0.01].max()),
                }
            )
        )
    print(json.dumps(versions()))


if __name__ == "__main__":
    main()
