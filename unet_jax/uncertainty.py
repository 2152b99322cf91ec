"""How certain a prediction is: several opinions on each pixel, and how far they agree.

Opinions are those of the members of an ensemble, or of one network that sees the image turned and
mirrored in the 8 ways of the square.
"""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from unet_jax.model import Model
from unet_jax.overlap_tile import predict_tiled, turned_views

_ROWS = 256  # that are worked on together


def predict_with_uncertainty(
    model: Model,
    image: np.ndarray,
    *,
    averaging: str = "symmetries",
    out: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    scratch: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of several predictions of one image, and how uncertain it is.

    Args:
      model: from `unet_jax.load`.
      image: as for `predict_tiled`.
      averaging: as for `predict_tiled`. For an ensemble, its members, each averaged like this, are
        compared; for a single network, the views, which must be "symmetries".
      out: float32 [H, W, classes] to write the mean to, such as an array in a file.
      uncertainty: float32 [H, W, 2] to write the other result to.
      scratch: float32 [H, W, classes], for each prediction in turn.

    Returns:
      float32 [H, W, classes], the mean, as from `predict_tiled`; and float32 [H, W, 2]: the entropy
      of the mean, in bits, from 0 to log2(classes), and the spread: for two classes the standard
      deviation of the probability of cell, from 0 to 0.5; for more, the square root of half the sum
      of the classes' variances. A spread below 0.001 may be rounding.

    Raises:
      ValueError: there is only one prediction to compare; otherwise as `predict_tiled`.

    Examples:
      >>> import unet_jax
      >>> image = np.random.default_rng(0).integers(0, 255, (120, 200))
      >>> mean, uncertainty = unet_jax.predict_with_uncertainty(unet_jax.load("nuclei"), image)
      >>> mean.shape, uncertainty.shape
      ((120, 200, 2), (120, 200, 2))
    """
    if not has_opinions(model, averaging):
        raise ValueError(
            "A single network gives only one prediction: uncertainty needs averaging=symmetries, "
            "or an ensemble, such as that of a cross-validation."
        )
    shape = *image.shape[:2], model.network.classes
    mean = np.empty(shape, np.float32) if out is None else out
    result = np.empty((*shape[:2], 2), np.float32) if uncertainty is None else uncertainty
    opinion = np.empty(shape, np.float32) if scratch is None else scratch
    mean[:], result[:] = 0, 0
    opinions = _opinions(model, averaging)
    share = np.float32(1 / len(opinions))
    for member, (turns, flip), averaged in opinions:
        seen = np.rot90(image, turns)[:, ::flip]
        # In the shape of the view, which may be as wide as the image is high.
        found = opinion.reshape(*seen.shape[:2], -1)
        predict_tiled(member, seen, averaging=averaged, out=found)
        turned_mean, squares = (
            np.rot90(array, turns)[:, ::flip] for array in (mean, result[..., 1])
        )
        for rows in _parts(len(found)):
            turned_mean[rows] += share * found[rows]
            squares[rows] += share * np.square(found[rows]).sum(-1)
    for rows in _parts(shape[0]):
        mean[rows] = mean[rows].clip(0, 1)  # averages may exceed 1 by rounding
        logarithms = np.log2(np.maximum(mean[rows], np.finfo(np.float32).tiny))
        result[rows, :, 0] = -(mean[rows] * logarithms).sum(-1)
        variance = result[rows, :, 1] - np.square(mean[rows]).sum(-1)
        result[rows, :, 1] = np.sqrt(variance.clip(0) / 2)
    return mean, result


def has_opinions(model: Model, averaging: str) -> bool:
    """Whether there are several opinions to compare, see `predict_with_uncertainty`."""
    return _members(model) > 1 or averaging == "symmetries"


def _members(model: Model) -> int:
    return len(jax.tree.leaves(model.params)[0])


def _opinions(model: Model, averaging: str) -> list[tuple[Model, tuple[int, int], str]]:
    """A network, the view of the image that it is shown, and how its prediction is averaged."""
    if _members(model) == 1:
        return [(model, view, "none") for view in turned_views(averaging)]
    return [
        (
            dataclasses.replace(
                model, params=jax.tree.map(lambda x, k=k: x[k : k + 1], model.params)
            ),
            (0, 1),
            averaging,
        )
        for k in range(_members(model))
    ]


def _parts(rows: int) -> Iterator[slice]:
    return (slice(top, top + _ROWS) for top in range(0, rows, _ROWS))
