"""A new last layer for the features of a network: a 1x1 convolution, fitted to annotated pixels."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

# Of the squared distance from the layer that the fit begins with, which makes it unique.
_PENALTY = 3e-3
_ITERATIONS = 100


class LastLayer(NamedTuple):
    """The 1x1 convolution that maps features to the logits of the classes.

    Attributes:
      kernel: float32 [width, classes].
      bias: float32 [classes].
    """

    kernel: np.ndarray
    bias: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Those of the classes for features [..., width], float32 [..., classes]."""
        return softmax(features @ self.kernel + self.bias, axis=-1)


class Pixels(NamedTuple):
    """Pixels with what is known of their classes.

    Attributes:
      features: float32 [N, width].
      targets: float32 [N, classes], the probabilities of the classes.
      weights: float32 [N], how much each counts.
    """

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def entropy(layer: LastLayer, pixels: Pixels) -> float:
    """The weighted mean cross-entropy of the targets and what the layer says; 0 without pixels."""
    logs = log_softmax(pixels.features @ layer.kernel + layer.bias, axis=-1)
    each = -(pixels.targets * logs).sum(-1)
    return float(pixels.weights @ each / max(pixels.weights.sum(), 1e-9))


def fitted(start: LastLayer, pixels: Pixels) -> LastLayer:
    """The layer with the least `entropy` and a small penalty on its distance from `start`.

    The problem is convex; it is solved by L-BFGS.
    """
    features = np.c_[pixels.features, np.ones(len(pixels.features), np.float32)]
    weights = (pixels.weights / pixels.weights.sum())[:, None]
    origin = np.vstack(start).astype(float)

    def loss_and_gradient(flat):
        layer = flat.reshape(origin.shape)
        logs = log_softmax(features @ layer, axis=-1)
        gradient = features.T @ (weights * (np.exp(logs) - pixels.targets))
        away = layer - origin
        loss = -(weights * pixels.targets * logs).sum() + _PENALTY * np.square(away).sum()
        return loss, (gradient + 2 * _PENALTY * away).ravel()

    options = {"maxiter": _ITERATIONS}
    best = minimize(
        loss_and_gradient, origin.ravel(), jac=True, method="L-BFGS-B", options=options
    ).x.reshape(origin.shape)
    *kernel, bias = best.astype(np.float32)
    return LastLayer(np.array(kernel), bias)
