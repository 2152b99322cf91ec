"""A random forest on filtered images: python train_forest.py PLACE SECONDS."""

import json
import sys
from pathlib import Path

import numpy as np
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier

PLACE = Path(sys.argv[1])
_PIXELS = 200_000
_TREES = 100


def features(split):
    """Brightness, edges and texture at scales of 0.7 to 10 pixels, as ilastik offers them."""
    for file in sorted(PLACE.glob(f"{split}_*_image.npy")):
        image = np.load(file).astype(np.float32)
        yield multiscale_basic_features(image, sigma_min=0.7, sigma_max=10)


def main():
    """Trains, and predicts the validation and test images."""
    seen = np.concatenate([array.reshape(-1, array.shape[-1]) for array in features("train")])
    files = sorted(PLACE.glob("train_*_labels.npy"))
    labels = np.concatenate([np.load(file).ravel() for file in files])
    chosen = np.random.default_rng(0).permutation(len(labels))[:_PIXELS]
    forest = RandomForestClassifier(_TREES, min_samples_leaf=5, random_state=0)
    forest.fit(seen[chosen], labels[chosen])
    for split in ("validation", "test"):
        for number, array in enumerate(features(split)):
            cell = forest.predict_proba(array.reshape(-1, array.shape[-1]))[:, 1]
            probability = cell.reshape(array.shape[:2]).astype(np.float32)
            np.save(PLACE / f"{split}_{number:03}_probability.npy", probability)
    print(json.dumps({"did": f"{_TREES} trees on {len(chosen)} of {len(labels)} pixels"}))


if __name__ == "__main__":
    main()
