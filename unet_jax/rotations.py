"""The paper's 7 rotated versions of an image, whose probabilities are averaged (Sect. 4)."""

import math
from collections.abc import Iterator

import numpy as np

from unet_jax.compiled import compiled
from unet_jax.mirroring import mirrored_part
from unet_jax.network import context
from unet_jax.tiles import Tile, tile_step

_ROTATIONS = 7


def rotated_tiles(
    image: np.ndarray, output: np.ndarray, tile_side: int, depth: int
) -> tuple[Iterator[Tile], int]:
    """The tiles of an image rotated by k 360 / 7 degrees about its centre, for all k.

    Args:
      image: [H, W, C] of grey values.
      output: float32 [H, W, classes], to which each tile adds a seventh of what it is given,
        rotated back; each pixel gets it from exactly one tile for each angle. Both ways are
        interpolated linearly.
      tile_side: see `tiles.check_tile_side`.
      depth: of the network.

    Returns:
      The tiles, and their number.
    """
    height, width, _ = image.shape
    step = tile_step(tile_side, depth)
    angles = [2 * math.pi * k / _ROTATIONS for k in range(_ROTATIONS)]
    places = [p for angle in angles for p in _places(height, width, angle, step, depth)]
    tiles = (_tile(image, output, place, step, tile_side, depth) for place in places)
    return tiles, len(places)


def _places(height, width, angle, step, depth):
    """The tiles that see something of the image rotated by `angle` (radians) about its centre.

    Yields the rotations from there to the image and back, see `_rotated`, a tile's first row and
    column in the rotated plane, and the slices of the image outside of which it writes no pixel.
    """
    centre = (height - 1) / 2, (width - 1) / 2
    forth, back = ((math.cos(a), math.sin(a), *centre) for a in (angle, -angle))
    grid = 2 ** (depth - 1)
    (top, bottom), (left, right) = _reach((0, height - 1), (0, width - 1), back)
    for y in range(top // grid * grid, bottom + 1, step):
        for x in range(left // grid * grid, right + 1, step):
            (first, last), (start, end) = _reach((y, y + step), (x, x + step), forth)
            rows = slice(max(first, 0), min(last + 2, height))
            columns = slice(max(start, 0), min(end + 2, width))
            if rows.start < rows.stop and columns.start < columns.stop:
                yield forth, back, (y, x), (rows, columns)


def _tile(image, output, place, step, side, depth) -> Tile:
    forth, back, origin, part = place
    top, left = (first - context(depth) for first in origin)
    (y, last_y), (x, last_x) = _reach((top, top + side - 1), (left, left + side - 1), forth)
    seen = mirrored_part(image, y, last_y + 2, x, last_x + 2).astype(np.float32, order="C")
    tile = np.zeros((side, side, image.shape[-1]), np.float32)
    _add_rotated(tile, (top, left), seen, (y, x), max(seen.shape), forth, np.float32(1))

    def write(probabilities):
        corner, share = (part[0].start, part[1].start), np.float32(1 / _ROTATIONS)
        _add_rotated(output[part], corner, probabilities, origin, step, back, share)

    return tile, write


def _reach(rows, columns, rotation):
    """The first and last row, and column, that a rotated rectangle reaches, rounded down."""
    y, x = np.transpose([_rotated(y, x, rotation) for y in rows for x in columns])
    return [(math.floor(line.min()), math.floor(line.max())) for line in (y, x)]


@compiled
def _rotated(y, x, rotation):
    """Rotated coordinates, the same bits wherever they are asked for."""
    cos, sin, cy, cx = rotation
    return cos * (y - cy) + cy - sin * (x - cx), sin * (y - cy) + cx + cos * (x - cx)


@compiled
def _add_rotated(target, corner, source, source_corner, step, rotation, weight):
    """Adds the pixels of `source`, rotated and interpolated linearly, to those of `target`.

    Both are parts [H, W, C] of planes, in which they begin at their corners. What lies beyond the
    first `step` rows and columns of the source is left to its neighbours; whole numbers decide, so
    that each pixel of the target is added to by exactly one of them.
    """
    height, width, channels = target.shape
    for i in range(height):
        for j in range(width):
            y, x = _rotated(corner[0] + i, corner[1] + j, rotation)
            floor_y, floor_x = math.floor(y), math.floor(x)
            k, m = floor_y - source_corner[0], floor_x - source_corner[1]
            if 0 <= k < step and 0 <= m < step:
                y, x = np.float32(y - floor_y), np.float32(x - floor_x)
                for c in range(channels):
                    upper = source[k, m, c] + x * (source[k, m + 1, c] - source[k, m, c])
                    lower = source[k + 1, m, c]
                    lower += x * (source[k + 1, m + 1, c] - lower)
                    target[i, j, c] += weight * (upper + y * (lower - upper))
