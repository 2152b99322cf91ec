"""What the host takes for predictions, on one core: a compiled crop stands for the network.

Statistics and the result's memory included. With --other beside the version in another checkout,
else beside itself; figures as those of `versions`.
"""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.prediction import a_model
from unet_jax import overlap_tile
from unet_jax.network import context


def rows(quick, other=None):
    """One row for each call."""
    from benchmarks.versions import compared  # which another version may lack

    yield from compared(Path(__file__), quick, other or ".")


def prediction(side, averaging, quick, images=1):
    """A call that predicts an image of 8 bits, or several one after another."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    image = np.random.default_rng(0).integers(0, 256, (side // 16 if quick else side,) * 2)
    overlap_tile.tile_probabilities = lambda network: crop
    model, image = a_model(1), image.astype(np.uint8)

    def predict():
        for _ in range(images):
            overlap_tile.predict_tiled(model, image, averaging=averaging)

    return predict


@jax.jit
def crop(params, tiles):
    """The middle of normalised tiles for each of two classes, as large as the network's output."""
    margin = context(5)
    middle = tiles[:, margin:-margin, margin:-margin]
    return jnp.broadcast_to(middle, (*middle.shape[:3], 2))


CALLS = {
    "4096x4096": partial(prediction, 4096, "none"),
    "512x512": partial(prediction, 512, "none"),
    "64 of 512x512": partial(prediction, 512, "none", images=64),
    "1024x1024, symmetries": partial(prediction, 1024, "symmetries"),
    "1024x1024, rotations": partial(prediction, 1024, "rotations"),
}
