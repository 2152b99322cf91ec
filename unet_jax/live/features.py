"""The feature maps that a network's last layer sees, for the parts of images that are asked for."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from unet_jax.grey_values import grey_value_statistics
from unet_jax.model import Model
from unet_jax.overlap_tile import feature_block, side_of_step

# Pixels, side of a block: a multiple of the max-pooling grid at any depth.
_BLOCK = 256
# Blocks that are kept, about half a gigabyte at a width of 16.
_MOST = 128


class Features:
    """Of one image, computed block by block on first request; the latest blocks are kept."""

    def __init__(self, model: Model, image: np.ndarray):
        """For a model of a single network and of scale 1.

        Args:
          model: whose last layer is not used.
          image: real and finite [H, W] or [H, W, C].

        Raises:
          ValueError: a pixel is too far from all others to be a grey value.
        """
        self._model = model
        self._image = image.reshape(*image.shape[:2], -1)
        self._statistics = grey_value_statistics(self._image, model.percentiles)
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """The feature maps of some rows and columns, each with a start and a stop, float32."""
        size = rows.stop - rows.start, columns.stop - columns.start
        found = np.empty((*size, self._model.network.width), np.float32)
        for y, x in _corners(rows, columns):
            block = self._block(y, x)
            top, left = max(y, rows.start), max(x, columns.start)
            bottom, right = min(y + _BLOCK, rows.stop), min(x + _BLOCK, columns.stop)
            found[
                top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
            ] = block[top - y : bottom - y, left - x : right - x]
        return found

    def at(self, pixels: np.ndarray) -> np.ndarray:
        """The features of single pixels, int [N, 2] -> float32 [N, width]."""
        found = np.empty((len(pixels), self._model.network.width), np.float32)
        corners = pixels // _BLOCK * _BLOCK
        for y, x in np.unique(corners, axis=0):
            there = (corners == (y, x)).all(1)
            rows, columns = (pixels[there] - (y, x)).T
            found[there] = self._block(int(y), int(x))[rows, columns]
        return found

    def _block(self, y: int, x: int) -> np.ndarray:
        block = self._blocks.pop((y, x), None)
        if block is None:
            height, width, _ = self._image.shape
            block = feature_block(
                self._model,
                self._image,
                slice(y, min(y + _BLOCK, height)),
                slice(x, min(x + _BLOCK, width)),
                self._statistics,
                tile_side=side_of_step(_BLOCK, self._model.network.depth),
            )
        self._blocks[y, x] = block  # the latest at the end
        if len(self._blocks) > _MOST:
            del self._blocks[next(iter(self._blocks))]
        return block


def _corners(rows: slice, columns: slice) -> Iterator[tuple[int, int]]:
    """Of the blocks that hold some of these rows and columns."""
    tops, lefts = (
        range(line.start // _BLOCK * _BLOCK, line.stop, _BLOCK) for line in (rows, columns)
    )
    return product(tops, lefts)
