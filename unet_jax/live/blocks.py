"""The blocks of images that count for a last layer: those around strokes, not too many of them.

A new network in the background needs the features of all of them before it can be judged.
"""

from collections.abc import Hashable, Mapping
from itertools import product

import numpy as np

from unet_jax.example import IGNORED
from unet_jax.live.features import BLOCK
from unet_jax.live.strokes import Painted

#: Rows and columns of an image.
Part = tuple[slice, slice]
# Blocks of all images together, few enough that their features are kept.
_MOST = 64
# Pixels of them, of all images together.
_SAMPLED = 2000


def blocks_that_count(
    painted: Mapping[Hashable, Painted], roles: Mapping[Hashable, np.ndarray]
) -> dict[Hashable, list[Part]]:
    """The blocks that hold strokes and those around them; some of the former, if they are many.

    Args:
      painted: the images with their strokes, by name.
      roles: of the painted pixels, by name, see `left_out`.

    Returns:
      The rows and columns of the blocks, by the name of the image, without those that have none.
    """
    blocks = [
        (name, y, x) for name, (_, strokes) in painted.items() for y, x in _around(strokes).tolist()
    ]
    if len(blocks) > _MOST:
        blocks = _drawn_blocks(painted, roles)
    parts: dict[Hashable, list[Part]] = {}
    for name, y, x in blocks:
        height, width = painted[name].strokes.shape
        rows = slice(y * BLOCK, min((y + 1) * BLOCK, height))
        columns = slice(x * BLOCK, min((x + 1) * BLOCK, width))
        parts.setdefault(name, []).append((rows, columns))
    return parts


def _around(strokes: np.ndarray) -> np.ndarray:
    """Which blocks hold strokes or touch one that does, int [N, 2]."""
    blocks = _holding(strokes != IGNORED)
    neighbours = np.indices((3, 3)).reshape(2, -1).T - 1
    near = np.unique((blocks[:, None] + neighbours).reshape(-1, 2), axis=0)
    last = (np.array(strokes.shape) - 1) // BLOCK
    return near[((near >= 0) & (near <= last)).all(1)]


def _drawn_blocks(
    painted: Mapping[Hashable, Painted], roles: Mapping[Hashable, np.ndarray]
) -> list[tuple[Hashable, int, int]]:
    """At random, of each class equally many with strokes to train on, and with those left out."""
    holding: dict[tuple[int, int], list[tuple[Hashable, int, int]]] = {}
    for name, (_, strokes) in painted.items():
        for role, label in product(range(2), np.unique(strokes[strokes != IGNORED])):
            there = _holding(roles[name][role] & (strokes == label)).tolist()
            holding.setdefault((role, label), []).extend((name, y, x) for y, x in there)
    rng, most = np.random.default_rng(0), max(_MOST // len(holding), 1)
    drawn = [found[i] for found in holding.values() for i in rng.permutation(len(found))[:most]]
    return list(dict.fromkeys(drawn))


def _holding(mask: np.ndarray) -> np.ndarray:
    """Which blocks hold pixels of a mask, int [N, 2]."""
    return np.unique(np.argwhere(mask) // BLOCK, axis=0)


def sampled_pixels(blocks: Mapping[Hashable, list[Part]]) -> dict[Hashable, np.ndarray]:
    """Pixels of the blocks at random, int [N, 2], painted or not."""
    rng = np.random.default_rng(0)
    each = -(-_SAMPLED // sum(map(len, blocks.values())))
    return {
        name: np.concatenate(
            [np.stack([rng.integers(line.start, line.stop, each) for line in p], 1) for p in parts]
        )
        for name, parts in blocks.items()
    }
