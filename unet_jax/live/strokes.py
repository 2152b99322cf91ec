"""Strokes painted on an image, and which of them are left out to judge a network by."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_jax.example import IGNORED

# One in so many strokes of a class is left out, the third first.
_EVERY, _FIRST = 4, 2
_ALL_NEIGHBOURS = np.ones((3, 3), bool)
# Pixels, side of the squares that divide long strokes and wide areas into several.
_SQUARE = 128


class Painted(NamedTuple):
    """An image with the strokes on it.

    Attributes:
      image: real and finite [H, W] or [H, W, C].
      strokes: int32 [H, W], the class of each painted pixel, `IGNORED` elsewhere.
    """

    image: np.ndarray
    strokes: np.ndarray


def left_out(strokes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Which painted pixels are left out of training: every fourth stroke of each class.

    A stroke is what is connected of one class, in squares of 128 x 128 pixels. It keeps its role
    while it grows; of the new ones, the third, the seventh and so on are left out.

    Args:
      strokes: int [H, W], see `Painted`.
      before: bool [2, H, W], the result for what was painted before; all False at first.

    Returns:
      bool [2, H, W]: the pixels that are trained on, and those that are left out.
    """
    roles = np.zeros((2, *strokes.shape), bool)
    rows, columns = (np.arange(side) // _SQUARE for side in strokes.shape)
    squares = rows[:, None] * len(columns) + columns
    for label in np.unique(strokes[strokes != IGNORED]):
        painted = strokes == label
        connected, count = ndimage.label(painted, _ALL_NEIGHBOURS)
        _, stroke = np.unique(squares[painted] * count + connected[painted], return_inverse=True)
        # Of each stroke, the pixels that had either role.
        trained, judged = (np.bincount(stroke, role[painted]) for role in before)
        is_new = trained + judged == 0
        rank = np.count_nonzero(~is_new) + np.cumsum(is_new) - 1
        is_left_out = np.where(is_new, rank % _EVERY == _FIRST, judged > trained)
        roles[:, painted] = ~is_left_out[stroke], is_left_out[stroke]
    return roles
