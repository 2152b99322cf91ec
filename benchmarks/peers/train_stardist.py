"""StarDist: python train_stardist.py PLACE SECONDS, in an environment of its own."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from stardist import calculate_extents, fill_label_holes
from stardist.models import Config2D, StarDist2D

PLACE, SECONDS = Path(sys.argv[1]), float(sys.argv[2])
_RNG = np.random.default_rng(0)
# Cells larger than this do not fit into what the network sees with the usual grid.
_SEEN = 90


class Stop(tf.keras.callbacks.Callback):
    """Ends the training when its time is over."""

    steps = 0

    def on_train_batch_end(self, batch, logs=None):
        """After each step."""
        self.steps += 1
        if self.steps == 1:  # after the compilation
            self.began = time.process_time()
        if time.process_time() - self.began > SECONDS:
            self.model.stop_training = True


def images(split):
    """Normalised as StarDist's examples do."""
    files = sorted(PLACE.glob(f"{split}_*_image.npy"))
    return [normalize(np.load(file).astype(np.float32), 1, 99.8, axis=(0, 1)) for file in files]


def cells(split):
    """Without holes."""
    return [fill_label_holes(np.load(f)) for f in sorted(PLACE.glob(f"{split}_*_cells.npy"))]


def vary(image, mask):
    """Turned, mirrored, brighter or darker, noisier."""
    turns, mirrored = _RNG.integers(4), _RNG.integers(2)
    image, mask = (np.rot90(array, turns) for array in (image, mask))
    if mirrored:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image = image * _RNG.uniform(0.6, 2) + _RNG.uniform(-0.2, 0.2)
    return image + 0.02 * _RNG.uniform() * _RNG.standard_normal(image.shape), mask


def main():
    """Trains, and finds the cells of the test images."""
    tf.random.set_seed(0)
    np.random.seed(0)  # noqa: NPY002  StarDist draws its patches so
    train, validation = (
        (images("train"), cells("train")),
        (images("validation"), cells("validation")),
    )
    large = max(calculate_extents(train[1])) > _SEEN
    patch = min(256, *(side // 16 * 16 for image in train[0] for side in image.shape))
    config = Config2D(
        n_rays=32,
        grid=(4, 4) if large else (2, 2),
        n_channel_in=1,
        train_patch_size=(patch, patch),
        train_tensorboard=False,
    )
    model = StarDist2D(config, name="model", basedir=str(PLACE))
    model.prepare_for_training()
    stop = Stop()
    model.callbacks.append(stop)
    model.train(*train, validation_data=validation, augmenter=vary)
    model.optimize_thresholds(*validation)
    for number, image in enumerate(images("test")):
        found, _ = model.predict_instances(image)
        np.save(PLACE / f"test_{number:03}_found.npy", found)
    print(json.dumps({"did": f"{stop.steps} steps of 4 patches of {patch} x {patch}"}))


if __name__ == "__main__":
    main()
