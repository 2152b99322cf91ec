"""The feature maps that a network's last layer sees, for the parts of images that are asked for."""

from collections.abc import Hashable
from itertools import product

import numpy as np

from unet_jax.grey_values import grey_value_statistics
from unet_jax.model import Model
from unet_jax.overlap_tile import feature_block
from unet_jax.tiles import side_of_step

#: Pixels, side of a block: a multiple of the max-pooling grid at any depth.
BLOCK = 256
# Blocks that are kept, of all images together: half a gigabyte at a width of 16.
_MOST = 128


class Features:
    """Those of a network, computed block by block on first request; the latest blocks are kept.

    Attributes:
      model: a single network of scale 1, whose last layer is not used.
    """

    def __init__(self, model: Model):
        """Of any number of images, which are told apart by a name."""
        self.model = model
        self._statistics: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}
        self._blocks: dict[tuple[Hashable, int, int], np.ndarray] = {}

    def part(self, name: Hashable, image: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """The feature maps of some rows and columns, each with a start and a stop.

        Args:
          name: of the image; the same name means the same pixels.
          image: real and finite [H, W] or [H, W, C].
          rows: of the part.
          columns: likewise.

        Returns:
          float32 [h, w, width].

        Raises:
          ValueError: a pixel is too far from all others to be a grey value.
        """
        size = rows.stop - rows.start, columns.stop - columns.start
        found = np.empty((*size, self.model.network.width), np.float32)
        tops, lefts = (
            range(line.start // BLOCK * BLOCK, line.stop, BLOCK) for line in (rows, columns)
        )
        for y, x in product(tops, lefts):
            block = self._block(name, image, y, x)
            top, left = max(y, rows.start), max(x, columns.start)
            bottom, right = min(y + BLOCK, rows.stop), min(x + BLOCK, columns.stop)
            found[
                top - rows.start : bottom - rows.start, left - columns.start : right - columns.start
            ] = block[top - y : bottom - y, left - x : right - x]
        return found

    def at(self, name: Hashable, image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """The features of single pixels, int [N, 2] -> float32 [N, width]; see `part`."""
        found = np.empty((len(pixels), self.model.network.width), np.float32)
        corners = pixels // BLOCK * BLOCK
        for y, x in np.unique(corners, axis=0):
            there = (corners == (y, x)).all(1)
            rows, columns = (pixels[there] - (y, x)).T
            found[there] = self._block(name, image, int(y), int(x))[rows, columns]
        return found

    def _block(self, name: Hashable, image: np.ndarray, y: int, x: int) -> np.ndarray:
        block = self._blocks.pop((name, y, x), None)
        if block is None:
            pixels = image.reshape(*image.shape[:2], -1)
            if name not in self._statistics:
                self._statistics[name] = grey_value_statistics(pixels, self.model.percentiles)
            height, width, _ = pixels.shape
            block = feature_block(
                self.model,
                pixels,
                slice(y, min(y + BLOCK, height)),
                slice(x, min(x + BLOCK, width)),
                self._statistics[name],
                tile_side=side_of_step(BLOCK, self.model.network.depth),
            )
        self._blocks[name, y, x] = block  # the latest at the end
        if len(self._blocks) > _MOST:
            del self._blocks[next(iter(self._blocks))]
        return block
