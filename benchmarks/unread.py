"""A training step on images that are read for it, beside one on images in memory.

Images of 256x256 pixels in files, which the system keeps in memory once they have been read; the
rows "slow files" are of a file system that takes 20 ms for each example, by how many steps ahead.
"""

import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import jax
import numpy as np
import tifffile

from benchmarks.side_by_side import alternate, rounded
from unet_jax import train, training_images
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.data import folder, known_folder
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.network import UNet

_SECONDS = 0.02


def rows(quick):
    """One row for each way to read."""
    count, rounds, repeats = (10, 2, 4) if quick else (1000, 8, 30)
    configuration = Configuration(
        model=UNet(width=2 if quick else 16, depth=4), train=TrainSettings(tile_side=284)
    )
    with tempfile.TemporaryDirectory() as place:
        unread = _folder(Path(place), count)
        in_memory = unread[:100]
        runs = {"in memory": train(in_memory, configuration)}
        for kind, examples in (
            ("read", unread),
            ("slow files", unread.changed(_slow, unread.facts)),
        ):
            for ahead in (1, 4) if quick else (1, 2, 4, 8):
                with patch.object(training_images, "_READ_AHEAD", ahead):
                    runs[f"{kind}, {ahead} ahead"] = steps = train(examples, configuration)
                    next(steps)
        calls = {name: partial(_go_on, steps, repeats) for name, steps in runs.items()}
        for name, seconds in alternate(calls, rounds, repeats).items():
            yield {"images": name, "milliseconds": rounded(1e3 * float(np.median(seconds)))}
        for steps in runs.values():
            steps.close()


def _folder(place, count):
    """So many images and masks in a folder, of which none is kept in memory."""
    (picture,) = synthetic_examples(0, 1, height=512, width=512)
    for name in ("images", "masks"):
        (place / name).mkdir()
    for i, (y, x) in enumerate(np.random.default_rng(0).integers(0, 256, (count, 2))):
        part = np.s_[y : y + 256, x : x + 256]
        tifffile.imwrite(place / "images" / f"{i}.tif", picture.image[part])
        tifffile.imwrite(place / "masks" / f"{i}.tif", picture.labels[part].astype(np.uint8))
    options = {"mask_rule": "binary", "classes": 2, "ignore_value": -1}
    with (
        patch.object(folder, "memory_for_images", lambda: 0),
        patch.object(known_folder, "save"),
    ):
        return folder.read_folder(place / "images", place / "masks", **options)


def _slow(example):
    time.sleep(_SECONDS)
    return example


def _go_on(steps, count):
    for progress in islice(steps, count):
        last = progress
    jax.block_until_ready(last.state)
