"""Overlap-tile prediction (Sect. 2, Fig. 2): an image of any size, mirrored at its border.

Every output pixel is written by one tile that holds all of its context. Tile origins lie on the
max-pooling grid, multiples of 2^(depth - 1), so that tiles and the whole image give the same
result; the output side, 16 k + 4 at depth 5, is not such a multiple: the surplus is dropped.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import numpy as np
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from unet_jax.hardware import device_memory_bytes, is_out_of_memory
from unet_jax.layers import compiler_options
from unet_jax.model import Model
from unet_jax.network import UNet, context, valid_input_sides
from unet_jax.normalisation import (
    MAX_GREY_VALUE,
    are_grey_values,
    grey_value_statistics,
    normalise,
)
from unet_jax.resizing import resized, scaled_size

logger = logging.getLogger("unet_jax")

#: How the probabilities of several views of the image may be averaged.
AVERAGING = ("none", "rotations", "symmetries")

# Pixels that a tile contributes to each side of the output; multiples of the max-pooling grid up to
# depth 7. Few, because each tile side is compiled once; dense enough that large images take less
# than 1.3 times the operations of the whole at once.
_STEPS = (64, 128, 256, 384, *range(512, 1025, 64))
# More input pixels at a time do not make an accelerator any faster.
_PIXELS_IN_FLIGHT = 2**20
# Feature maps of the first level's size and width that are alive at once, generously.
_MAPS_ALIVE = 8


def predict_tiled(
    model: Model,
    image: np.ndarray,
    *,
    tile_side: int | None = None,
    averaging: str = "none",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Class probabilities for each pixel of one image; a stack is a loop over its slices.

    Args:
      model: from `unet_jax.load`.
      image: real and finite, [H, W] for a model of one channel, else [H, W, C]; any size and range.
      tile_side: pixels, the side of the network's input; `choose_tile_side` by default. The result
        does not depend on it beyond rounding; where it does not fit the memory, smaller ones are
        tried, with a warning.
      averaging: "none"; "rotations", the 7 of the paper by k 360 / 7 degrees; or "symmetries",
        the 8 of the square. The probabilities are averaged after turning back.
      out: float32 [H, W, classes] to write the result to, such as an array in a file; image and
        result may then be larger than the memory, but not for a model of another scale than 1.

    Returns:
      float32 [H, W, classes], summing to 1 over the classes; 0 = background or membrane, 1 = cell.

    Raises:
      ValueError: a masked array; an image of another shape than the model takes, without pixels,
        not finite, or with a pixel too far from all others; a tile side that the network does not
        take; an unknown `averaging`; an `out` of another shape or dtype.
      MemoryError: not even the smallest tile fits.
    """
    image = _checked(image, model.channels)
    if averaging not in AVERAGING:
        raise ValueError(f"averaging is one of {', '.join(AVERAGING)}, not {averaging!r}.")
    height, width, _ = image.shape
    shape = height, width, model.network.classes
    if out is not None and (out.shape != shape or out.dtype != np.float32):
        raise ValueError(f"The result is float32 {shape}, but out is {out.dtype} {out.shape}.")
    if model.scale != 1:
        image = resized(image, scaled_size((height, width), model.scale))
        model = dataclasses.replace(model, scale=1.0)
        image = image if model.channels > 1 else image[..., 0]
        scaled = predict_tiled(model, image, tile_side=tile_side, averaging=averaging)
        result = resized(scaled, (height, width))
        if out is None:
            return result
        out[:] = result
        return out
    depth = model.network.depth
    side = choose_tile_side(model.network, height, width) if tile_side is None else tile_side
    if side not in valid_input_sides(side, depth) or tile_step(side, depth) < 1:
        nearest = [s for s in valid_input_sides(side, depth) if tile_step(s, depth) > 0]
        nearest = nearest or [_side_of_step(2 ** (depth - 1), depth)]
        raise ValueError(
            f"A U-Net of depth {depth} cannot take tiles of side {side}; "
            f"the nearest valid ones: {', '.join(map(str, nearest))}."
        )

    try:
        statistics = grey_value_statistics(image, model.percentiles)
    except ValueError as error:
        raise ValueError(f"The image {error}.") from None
    out = np.empty(shape, np.float32) if out is None else out  # the statistics' memory is free now
    for fitting, batch_size in _attempts(model.network, side):
        try:
            _predict_by_tiles(model, image, statistics, averaging, fitting, batch_size, out)
            return out
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("Out of memory with %d tile(s) of side %d.", batch_size, fitting)
    raise MemoryError(f"Not even one tile of side {fitting} fits; a smaller model.width would.")


def _attempts(network: UNet, side: int) -> Iterator[tuple[int, int]]:
    """Tile sides and numbers of tiles at a time, from what should fit to the least that works."""
    batch_size = tiles_per_batch(network, side)
    yield side, batch_size
    if batch_size > 1:
        yield side, 1
    for smaller in sorted((_side_of_step(step, network.depth) for step in _STEPS), reverse=True):
        if smaller < side:
            yield smaller, 1


def _predict_by_tiles(model, image, statistics, averaging, side, batch_size, output) -> None:
    """Fills float32 [H, W, classes] for an image [H, W, C]."""
    output[:] = 0
    tiles, count = _tiles(image, output, averaging, side, model.network.depth)
    predict = tile_probabilities(model.network)
    progress = tqdm(tiles, total=count, desc="Predicting", unit="tile", delay=3, leave=False)
    before = None
    for batch in _batched(progress, batch_size):
        # The last batch is filled up, so that there is one compilation for each tile side.
        inputs = np.zeros((batch_size, side, side, model.channels), np.float32)
        for i, (tile, _) in enumerate(batch):
            inputs[i] = normalise(tile, *statistics)
        # The device computes while the host writes what came before.
        probabilities = predict(model.params, inputs)
        if before:
            _write(*before)
        before = batch, probabilities
    if before:
        _write(*before)
    np.clip(output, 0, 1, out=output)  # averages may exceed 1 by rounding


@functools.cache
def tile_probabilities(network: UNet) -> Callable[[Any, jax.Array | np.ndarray], jax.Array]:
    """The compiled predict(params, tiles [N, side, side, C]) -> probabilities, float32.

    Soft-max of the network's output for normalised tiles, and its mean over the ensemble, which is
    the leading axis of the parameters; its members take turns, so that the memory is that of one.
    """

    def predict(params, tiles):
        def member(p):
            return jax.nn.softmax(cast(jax.Array, network.apply({"params": p}, tiles)))

        return jax.lax.map(member, params).mean(0)

    return jax.jit(predict, compiler_options=compiler_options())


def tile_step(tile_side: int, depth: int) -> int:
    """Pixels from one tile's origin to the next one's, a multiple of the max-pooling grid.

    The output is at least one pixel larger, for the interpolation of rotated tiles.
    """
    grid = 2 ** (depth - 1)
    return (tile_side - 2 * context(depth) - 1) // grid * grid


def choose_tile_side(network: UNet, height: int, width: int) -> int:
    """The tile side that takes the fewest operations for such an image and fits the memory."""

    def input_pixels(step):
        side = _side_of_step(step, network.depth)
        batch = tiles_per_batch(network, side)
        tiles = math.ceil(height / step) * math.ceil(width / step)
        return math.ceil(tiles / batch) * batch * side**2

    def fits(step):
        return (
            _tile_bytes(network, _side_of_step(step, network.depth)) <= device_memory_bytes() // 2
        )

    # The smallest is always allowed: there is nothing else to try.
    fitting = [step for step in _STEPS if fits(step)]
    return _side_of_step(min(fitting or _STEPS[:1], key=input_pixels), network.depth)


def tiles_per_batch(network: UNet, tile_side: int) -> int:
    """Tiles that fill the device; one on a CPU, whose cores share one tile."""
    if jax.default_backend() == "cpu":
        return 1
    fit = device_memory_bytes() // 2 // _tile_bytes(network, tile_side)
    return max(1, min(fit, _PIXELS_IN_FLIGHT // tile_side**2))


def mirror_indices(start: int, stop: int, size: int) -> np.ndarray:
    """Where the pixels start ... stop - 1 of a mirrored line of `size` pixels come from, int [n].

    The edge pixel is not repeated: 2 1 0 1 2 for start = -2.
    """
    period = max(2 * (size - 1), 1)
    indices = np.arange(start, stop) % period
    return np.minimum(np.minimum(indices, period - indices), size - 1)


def _checked(image, channels):
    if _is_masked(image):
        raise ValueError(
            "The model takes no masked array, whose masked pixels would be taken for measured ones;"
            " give image.filled(value)."
        )
    image = np.asarray(image)
    expected = "[H, W]" if channels == 1 else f"[H, W, {channels}]"
    fits = image.ndim == 2 if channels == 1 else image.ndim == 3 and image.shape[-1] == channels
    if not fits or not image.size:
        raise ValueError(
            f"The model takes an image {expected}, not one of shape {list(image.shape)}."
        )
    if image.dtype.kind not in "biuf":
        raise ValueError(f"The model takes an image of real numbers, not of {image.dtype}.")
    if not are_grey_values(image):
        raise ValueError(
            f"The image holds NaN, infinite or huge pixels, not numbers up to {MAX_GREY_VALUE:g}."
        )
    # SciPy's interpolation does not know float16.
    image = image.astype(np.float32) if image.dtype == np.float16 else image
    return image.reshape(*image.shape[:2], channels)


def _is_masked(image):
    parts = image if isinstance(image, list | tuple) else ()
    return isinstance(image, np.ma.MaskedArray) or any(map(_is_masked, parts))


def _side_of_step(step, depth):
    return valid_input_sides(step + 2 * context(depth) + 1, depth)[-1]


def _tile_bytes(network, side):
    return _MAPS_ALIVE * side**2 * network.width * np.dtype(np.float32).itemsize


def _batched(items, size):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(batch, probabilities):
    for (_, write), tile_output in zip(batch, np.asarray(probabilities), strict=False):
        write(tile_output)


# A tile to predict, [side, side, C] of grey values, and what adds its probabilities to the output.
_Tile = tuple[np.ndarray, Callable[[np.ndarray], None]]


def _tiles(image, output, averaging, side, depth) -> tuple[Iterator[_Tile], int]:
    """The tiles of all views, and their number."""
    height, width, _ = output.shape
    step = tile_step(side, depth)
    if averaging == "rotations":
        angles = [2 * math.pi * k / 7 for k in range(7)]
        origins = [_rotated_origins(height, width, angle, step, depth) for angle in angles]
        # SciPy would copy the whole image for each tile, if its bytes were in the other order.
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
        return (
            tile
            for angle, corners in zip(angles, origins, strict=True)
            for tile in _rotated_tiles(image, output, angle, corners, step, side, depth)
        ), sum(map(len, origins))
    views = [(0, 1)] if averaging == "none" else [(k, flip) for k in range(4) for flip in (1, -1)]
    return (
        tile
        for turns, flip in views
        for tile in _upright_tiles(
            np.rot90(image, turns)[:, ::flip],
            np.rot90(output, turns)[:, ::flip],
            1 / len(views),
            step,
            side,
            depth,
        )
    ), len(views) * math.ceil(height / step) * math.ceil(width / step)


def _upright_tiles(image, output, weight, step, side, depth) -> Iterator[_Tile]:
    """Tiles of one view; `output` is the same view of the array to add to."""
    height, width, _ = output.shape
    before, after = context(depth), side - context(depth)
    for top in range(0, height, step):
        for left in range(0, width, step):
            rows = mirror_indices(top - before, top + after, height)
            columns = mirror_indices(left - before, left + after, width)
            target = output[top : top + step, left : left + step]

            def write(probabilities, target=target):
                target += np.float32(weight) * probabilities[: target.shape[0], : target.shape[1]]

            yield image[np.ix_(rows, columns)], write


def _rotated_origins(height, width, angle, step, depth):
    """Origins of the tiles that cover the image turned by `angle` about its centre."""
    corners = np.array([(y, x) for y in (0, height - 1) for x in (0, width - 1)], float)
    y, x = _turned(corners[:, 0], corners[:, 1], -angle, height, width)
    grid = 2 ** (depth - 1)

    def starts(low, high):
        return range(math.floor(low / grid) * grid, math.floor(high) + 1, step)

    return [(top, left) for top in starts(y.min(), y.max()) for left in starts(x.min(), x.max())]


def _rotated_tiles(image, output, angle, origins, step, side, depth) -> Iterator[_Tile]:
    """Tiles of the turned image, interpolated linearly there and back."""
    height, width, classes = output.shape
    before = context(depth)
    pixels = np.arange(side, dtype=float) - before
    for top, left in origins:
        y, x = _turned(top + pixels[:, None], left + pixels[None, :], angle, height, width)
        tile = np.stack(
            [
                map_coordinates(image[..., c], (y, x), np.float32, order=1, mode="mirror")
                for c in range(image.shape[-1])
            ],
            axis=-1,
        )

        def write(probabilities, top=top, left=left):
            # The pixels of the image that lie in the turned tile, each in one tile only.
            ends = np.array([(a, b) for a in (top, top + step) for b in (left, left + step)], float)
            y, x = _turned(ends[:, 0], ends[:, 1], angle, height, width)
            rows, columns = _within(y, height), _within(x, width)
            y, x = _turned(rows[:, None], columns[None, :], -angle, height, width)
            y, x = y - top, x - left
            inside = (y >= 0) & (y < step) & (x >= 0) & (x < step)
            target = output[rows[:, None], columns[None, :]]
            for c in range(classes):
                back = map_coordinates(probabilities[..., c], (y[inside], x[inside]), order=1)
                target[inside, c] += np.float32(1 / 7) * back
            output[rows[:, None], columns[None, :]] = target

        yield tile, write


def _within(coordinates, size):
    """The pixels of a line that lie between the least and the largest coordinate."""
    first, last = math.floor(coordinates.min()), math.ceil(coordinates.max())
    return np.arange(size)[max(first, 0) : max(last + 1, 0)]


def _turned(y, x, angle, height, width):
    """Coordinates turned by `angle` (radians) about the centre of an image."""
    cy, cx = (height - 1) / 2, (width - 1) / 2
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = y - cy, x - cx
    return cos * y - sin * x + cy, sin * y + cos * x + cx
