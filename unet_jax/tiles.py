"""The sides that a tile can have, and how many tiles of them fit into memory."""

import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from unet_jax.hardware import device_memory_bytes
from unet_jax.network import UNet, context, valid_input_sides

#: What takes the probabilities of a tile, [H, W, classes].
Write = Callable[[np.ndarray], None]
#: A tile to predict, [side, side, C] of grey values, and what writes its probabilities.
Tile = tuple[np.ndarray, Write]

# Pixels that a tile contributes to each side of the output; multiples of the max-pooling grid up to
# depth 7. Few, because each tile side is compiled once; dense enough that large images take less
# than 1.3 times the operations of the whole at once.
_STEPS = (64, 128, 256, 384, *range(512, 1025, 64))
# More input pixels at a time do not make an accelerator any faster.
_PIXELS_IN_FLIGHT = 2**20
# Memory in feature maps of the first level's size and width. XLA's plans take 2.1 to 3.1 of them on
# a CPU and up to 2.4 on a GPU, where the convolutions may ask for more.
_MAPS_ALIVE = 4


def tile_step(tile_side: int, depth: int) -> int:
    """Pixels from one tile's origin to the next one's, a multiple of the max-pooling grid.

    The output is at least one pixel larger, for the interpolation of rotated tiles.
    """
    grid = 2 ** (depth - 1)
    return (tile_side - 2 * context(depth) - 1) // grid * grid


def side_of_step(step: int, depth: int) -> int:
    """The smallest tile side with this `tile_step`, a multiple of the max-pooling grid."""
    return valid_input_sides(step + 2 * context(depth) + 1, depth)[-1]


def check_tile_side(tile_side: int, depth: int) -> None:
    """Raises ValueError, which names the nearest valid ones, if the network takes no such tiles."""
    nearest = valid_input_sides(tile_side, depth)
    if tile_side not in nearest or tile_step(tile_side, depth) < 1:
        nearest = [side for side in nearest if tile_step(side, depth) > 0]
        nearest = nearest or [side_of_step(2 ** (depth - 1), depth)]
        raise ValueError(
            f"A U-Net of depth {depth} cannot take tiles of side {tile_side}; "
            f"the nearest valid ones: {', '.join(map(str, nearest))}."
        )


def choose_tile_side(network: UNet, height: int, width: int) -> int:
    """The tile side that fits in memory and needs the fewest operations for such an image."""

    def input_pixels(step):
        side = side_of_step(step, network.depth)
        batch = tiles_per_batch(network, side)
        tiles = math.ceil(height / step) * math.ceil(width / step)
        return math.ceil(tiles / batch) * batch * side**2

    def fits(step):
        return _tile_bytes(network, side_of_step(step, network.depth)) <= device_memory_bytes() // 2

    # The smallest is always allowed: there is nothing else to try.
    fitting = [step for step in _STEPS if fits(step)]
    return side_of_step(min(fitting or _STEPS[:1], key=input_pixels), network.depth)


def tiles_per_batch(network: UNet, tile_side: int) -> int:
    """Tiles that fill the device; one on a CPU, whose cores share one tile."""
    if jax.default_backend() == "cpu":
        return 1
    fit = device_memory_bytes() // 2 // _tile_bytes(network, tile_side)
    return max(1, min(fit, _PIXELS_IN_FLIGHT // tile_side**2))


def sizes_to_try(network: UNet, tile_side: int) -> Iterator[tuple[int, int]]:
    """Tile sides and numbers of tiles at a time, from what should fit to the smallest possible."""
    batch_size = tiles_per_batch(network, tile_side)
    yield tile_side, batch_size
    if batch_size > 1:
        yield tile_side, 1
    for smaller in sorted((side_of_step(step, network.depth) for step in _STEPS), reverse=True):
        if smaller < tile_side:
            yield smaller, 1


def _tile_bytes(network, side):
    return _MAPS_ALIVE * side**2 * network.width * np.dtype(np.float32).itemsize
