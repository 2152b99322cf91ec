"""The weight map of the paper (Sect. 3, Eq. 2): class balance and separation borders."""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.checked_settings import check, setting
from unet_jax.example import IGNORED, Example

logger = logging.getLogger("unet_jax")

_BLOCK = 128  # pixels, side
# Blocks: who waits for each alone waits for the training step that the device is at, too.
_AT_ONCE = 64


@dataclass(frozen=True)
class WeightMapSettings:
    """How much the background between cells weighs.

    Attributes:
      w0: weight of a border of zero width.
      sigma: how far from the cells the weight reaches, in pixels.
    """

    w0: float = setting(10.0, at_least=0)
    sigma: float = setting(5.0, above=0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


def class_weights(labels: Sequence[np.ndarray], classes: int) -> np.ndarray:
    """w_c = N / (K N_c), so that each of the K classes has the same total weight.

    Args:
      labels: the training split, int arrays [H, W] of any sizes; `IGNORED` pixels do not count.
      classes: K.

    Returns:
      float32 [classes]; 0, with a warning, for a class that does not occur.

    Examples:
      >>> class_weights([np.array([[0, 1, 1, 1]])], classes=2)
      array([2.       , 0.6666667], dtype=float32)
    """
    pixels = [np.bincount(a[a != IGNORED], minlength=classes) for a in labels]
    return balanced(np.sum(pixels, axis=0))


def balanced(pixels: np.ndarray) -> np.ndarray:
    """The `class_weights` for the number of pixels of each class, int [classes]."""
    for absent in np.flatnonzero(pixels == 0):
        logger.warning("Class %d does not occur in the training labels: its weight is 0.", absent)
    weights = pixels.sum() / (len(pixels) * np.maximum(pixels, 1))
    return np.where(pixels > 0, weights, 0).astype(np.float32)


def weight_map(
    labels: jax.Array,
    instances: jax.Array,
    class_weights: jax.Array,
    settings: WeightMapSettings = WeightMapSettings(),
) -> jax.Array:
    """Eq. 2 for one image: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)).

    The second term is for background pixels only, and 0 where fewer than two cells lie within
    4 sigma: it would be below 0.0034 there.

    Args:
      labels: int [H, W], the class of each pixel, 0 = background, or `IGNORED` (weight 0).
      instances: int32 [H, W], the cell each pixel belongs to, 0 = none; for a block of an image,
        [H + 2 reach(sigma), W + 2 reach(sigma)], with the pixels around the block.
      class_weights: float32 [classes], see `class_weights`.
      settings: w0 and sigma.

    Returns:
      float32 [H, W].

    Examples:
      >>> cells = jnp.int32([[1, 1, 0, 0, 0, 2, 2]])
      >>> weights = weight_map(jnp.int32(cells > 0), cells, jnp.float32([1, 1]))
      >>> print(weights.round(1))
      [[1.  1.  8.3 8.3 8.3 1.  1. ]]
    """
    around = reach(settings.sigma)
    if instances.shape == labels.shape:
        instances = jnp.pad(instances, around)
    d1, d2 = two_nearest_cells(instances, reach=around)
    separation = settings.w0 * jnp.exp(-jnp.square(d1 + d2) / (2 * settings.sigma**2))
    weights = jnp.asarray(class_weights)[jnp.maximum(labels, 0)] + jnp.where(
        labels == 0, separation, 0
    )
    return jnp.where(labels == IGNORED, 0, weights)


def reach(sigma: float) -> int:
    """Pixels; how far a cell affects the weights."""
    return math.ceil(4 * sigma)


def two_nearest_cells(instances: jax.Array, *, reach: int) -> tuple[jax.Array, jax.Array]:
    """Distance of each pixel to the nearest and to the second nearest cell.

    In two passes, along rows and then along columns, each of which keeps the two nearest different
    cells: a third one in a row cannot be among the nearest two in the plane. The cost depends on
    `reach`, not on the number of cells.

    Args:
      instances: int32 [H + 2 reach, W + 2 reach], the cell each pixel belongs to, 0 = none, with
        the pixels around.
      reach: pixels; how far to look along either axis.

    Returns:
      Two float32 [H, W], in pixels between pixel centres, inf where there is no such cell in reach.
    """
    height, width = (side - 2 * reach for side in instances.shape)

    def at(array, offset, axis):
        size = (height, width)[axis]
        return jax.lax.dynamic_slice_in_dim(array, reach + offset, size, axis)

    # The nearest ones come first. Unrolled, which saves writing and reading what is kept: whole
    # images take half the time, and compiling still less than a second.
    def nearest_of(closer, shape):
        nothing = jnp.zeros(shape, instances.dtype), jnp.full(shape, jnp.inf, jnp.float32)
        return jax.lax.fori_loop(0, reach + 1, closer, nothing * 2, unroll=11)

    def along_row(distance, nearest):
        for offset in (-distance, distance):
            cell = at(instances, offset, axis=1)
            square = jnp.where(cell > 0, jnp.float32(distance**2), jnp.inf)
            nearest = _closer(nearest, cell, square)
        return nearest

    in_row = nearest_of(along_row, (height + 2 * reach, width))

    def along_column(distance, nearest):
        for offset in (-distance, distance):
            for cell, square in (in_row[:2], in_row[2:]):
                further = at(square, offset, axis=0) + jnp.float32(distance**2)
                nearest = _closer(nearest, at(cell, offset, axis=0), further)
        return nearest

    _, square1, _, square2 = nearest_of(along_column, (height, width))
    return jnp.sqrt(square1), jnp.sqrt(square2)


def _closer(nearest, cell, square):
    """The two nearest different cells out of `nearest` and one more at a squared distance."""
    cell1, square1, cell2, square2 = nearest
    first = square < square1
    second = (square < square2) & (cell != cell1)
    # A new first one pushes the old first to the second place, unless it is the same cell.
    pushed = first & (cell != cell1)
    return (
        jnp.where(first, cell, cell1),
        jnp.where(first, square, square1),
        jnp.where(pushed, cell1, jnp.where(second, cell, cell2)),
        jnp.where(pushed, square1, jnp.where(second, square, square2)),
    )


_compiled = jax.jit(weight_map, static_argnames="settings")


def weight_maps(
    examples: Sequence[Example],
    class_weights: np.ndarray,
    settings: WeightMapSettings = WeightMapSettings(),
) -> list[np.ndarray]:
    """Eq. 2 for each example, float32 [H, W], see `weight_map`.

    In blocks of one size, so that it is compiled once for images of any size and takes the memory
    of only a few blocks.
    """
    whole = np.s_[:, :]
    return [weight_map_part(example, whole, class_weights, settings) for example in examples]


def weight_map_part(
    example: Example,
    part: tuple[slice, slice],
    class_weights: np.ndarray,
    settings: WeightMapSettings = WeightMapSettings(),
) -> np.ndarray:
    """A part, given by rows and columns, of one of the `weight_maps`, bit for bit, float32.

    Computed in the blocks of the whole map, but only those that the part reaches.
    """
    around = reach(settings.sigma)
    height, width = example.labels.shape
    (top, bottom, _), (left, right, _) = (
        along.indices(side) for along, side in zip(part, (height, width), strict=True)
    )
    end = [(0, -height % _BLOCK), (0, -width % _BLOCK)]
    labels = np.pad(example.labels, end)
    instances = np.pad(np.pad(example.instances, end), around)
    weights = np.empty(labels.shape, np.float32)
    corners = itertools.product(
        range(top - top % _BLOCK, bottom, _BLOCK), range(left - left % _BLOCK, right, _BLOCK)
    )
    while some := [*itertools.islice(corners, _AT_ONCE)]:
        computed = [
            _compiled(
                labels[y : y + _BLOCK, x : x + _BLOCK],
                instances[y : y + _BLOCK + 2 * around, x : x + _BLOCK + 2 * around],
                class_weights,
                settings,
            )
            for y, x in some
        ]
        for (y, x), block in zip(some, computed, strict=True):
            weights[y : y + _BLOCK, x : x + _BLOCK] = block
    return weights[top:bottom, left:right]
