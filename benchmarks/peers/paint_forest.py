"""A random forest on the filtered pixels under strokes: python paint_forest.py PLACE."""

import sys
from pathlib import Path

import numpy as np
from skimage.feature import multiscale_basic_features
from sklearn.ensemble import RandomForestClassifier


def main(place):
    """Predicts the classes of `image.npy` from `strokes.npy`, in which -1 is not painted."""
    image = np.load(place / "image.npy").astype(np.float32)
    strokes = np.load(place / "strokes.npy")
    features = multiscale_basic_features(image, sigma_min=0.7, sigma_max=10)
    painted = strokes >= 0
    forest = RandomForestClassifier(
        100, min_samples_leaf=2, class_weight="balanced", random_state=0
    ).fit(features[painted], strokes[painted])
    found = forest.predict(features.reshape(-1, features.shape[-1]))
    np.save(place / "found.npy", found.reshape(strokes.shape))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
