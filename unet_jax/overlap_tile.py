"""Overlap-tile prediction (Sect. 2, Fig. 2): an image of any size, mirrored at its border.

Every output pixel is written by one tile that holds all of its context. Tile origins lie on the
max-pooling grid, multiples of 2^(depth - 1), so that tiles and the whole image give the same
result; the output side, 16 k + 4 at depth 5, is not such a multiple: the surplus is dropped.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from unet_jax.grey_values import MAX_GREY_VALUE, are_grey_values, grey_value_statistics
from unet_jax.hardware import is_out_of_memory
from unet_jax.layers import compiler_options, relu
from unet_jax.mirroring import mirrored_part
from unet_jax.model import Model
from unet_jax.network import UNet, context
from unet_jax.normalisation import normalise
from unet_jax.resizing import resized, scaled_size
from unet_jax.rotations import rotated_tiles
from unet_jax.tiles import (
    Tile,
    Write,
    check_tile_side,
    choose_tile_side,
    sizes_to_try,
    tile_step,
    tiles_per_batch,
)

# Elsewhere before JAX 0.8.
_in_64_bits = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64

logger = logging.getLogger("unet_jax")

#: How the probabilities of several views of the image may be averaged.
AVERAGING = ("none", "rotations", "symmetries")


def predict_tiled(
    model: Model,
    image: np.ndarray,
    *,
    tile_side: int | None = None,
    averaging: str = "none",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Class probabilities for each pixel of one image; for a stack, call it for each slice.

    Args:
      model: from `unet_jax.load`.
      image: real and finite, [H, W] for a model of one channel, else [H, W, C]; any size and range.
      tile_side: pixels, the side of the network's input; `choose_tile_side` by default. The result
        does not depend on it beyond rounding; if it does not fit into memory, smaller ones are
        tried, with a warning.
      averaging: "none"; "rotations", the paper's 7 rotations by k 360 / 7 degrees; or "symmetries",
        the 8 symmetries of the square. The probabilities are turned back before they are averaged.
      out: float32 [H, W, classes] to write the result to, such as an array in a file; image and
        result may then be larger than the memory, but only if the model's scale is 1.

    Returns:
      float32 [H, W, classes], summing to 1 over the classes; 0 = background or membrane, 1 = cell.

    Raises:
      ValueError: a masked array; an image that does not have the shape the model takes, has no
        pixels, is not finite, or has a pixel too far from all others; a tile side that the network
        does not take; an unknown `averaging`; an `out` of the wrong shape or dtype.
      MemoryError: not even the smallest tile fits.

    Examples:
      >>> import unet_jax
      >>> image = np.random.default_rng(0).integers(0, 255, (120, 200))
      >>> unet_jax.predict_tiled(unet_jax.load("nuclei"), image).shape
      (120, 200, 2)
    """
    image = _checked(image, model.channels)
    if averaging not in AVERAGING:
        raise ValueError(f"averaging must be one of {', '.join(AVERAGING)}, not {averaging!r}.")
    height, width, _ = image.shape
    shape = height, width, model.network.classes
    if out is not None and (out.shape != shape or out.dtype != np.float32):
        raise ValueError(
            f"out must be float32 {shape} like the result, not {out.dtype} {out.shape}."
        )
    if model.scale != 1:
        image = resized(image, scaled_size((height, width), model.scale))
        model = dataclasses.replace(model, scale=1.0)
        image = image if model.channels > 1 else image[..., 0]
        scaled = predict_tiled(model, image, tile_side=tile_side, averaging=averaging)
        # Averages may exceed 1 by rounding.
        result = np.minimum(resized(scaled, (height, width)), 1)
        if out is None:
            return result
        out[:] = result
        return out
    depth = model.network.depth
    if tile_side is None:
        # Turned images are larger: as much as by 45 degrees, if it has to be one size for all.
        turned = math.ceil((height + width) / math.sqrt(2))
        seen = (turned, turned) if averaging == "rotations" else (height, width)
        tile_side = choose_tile_side(model.network, *seen)
    check_tile_side(tile_side, depth)

    try:
        statistics = grey_value_statistics(image, model.percentiles)
    except ValueError as error:
        raise ValueError(f"The image {error}.") from None
    out = np.empty(shape, np.float32) if out is None else out  # the statistics' memory is free now
    for fitting, batch_size in sizes_to_try(model.network, tile_side):
        try:
            tiles, count = _tiles(image, out, averaging, fitting, depth)
            progress = tqdm(
                tiles, total=count, desc="Predicting", unit="tile", delay=3, leave=False
            )
            predict = tile_probabilities(model.network)
            _predict_tiles(model, predict, progress, statistics, averaging, batch_size, out)
            return out
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.warning(
                "Out of memory with %d tile(s) of side %d; trying less.", batch_size, fitting
            )
    raise MemoryError(
        f"Not even one tile of side {fitting} fits into memory; a network with a smaller "
        "model.width needs less."
    )


def predict_block(
    model: Model,
    plane: Any,
    rows: slice,
    columns: slice,
    statistics: tuple[np.ndarray, np.ndarray],
    *,
    tile_side: int,
    averaging: str = "none",
) -> np.ndarray:
    """A block of the result of `predict_tiled`, bit for bit, from only the pixels its tiles see.

    Args:
      model: of scale 1.
      plane: the image [H, W, C], real and finite: an array, or an object that has its `shape` and
        gives `plane[rows, columns]` from a store.
      rows: the rows of the block, with a start and a stop.
      columns: its columns, likewise.
      statistics: of the whole plane, from `grey_value_statistics`.
      tile_side: as for `predict_tiled`. Without averaging, no pixel is predicted twice in blocks
        that begin and end at multiples of its `tile_step`.
      averaging: "none" or "symmetries".

    Returns:
      float32 [h, w, classes].

    Raises:
      jax.errors.JaxRuntimeError: the tiles do not fit into memory.
    """
    predict = tile_probabilities(model.network)
    channels = model.network.classes
    return _block(model, predict, channels, plane, rows, columns, statistics, tile_side, averaging)


def feature_block(
    model: Model,
    plane: Any,
    rows: slice,
    columns: slice,
    statistics: tuple[np.ndarray, np.ndarray],
    *,
    tile_side: int,
) -> np.ndarray:
    """The feature maps of a block from which the last layer computes the classes.

    Args:
      model: of a single network; the rest as for `predict_block`.

    Returns:
      float32 [h, w, width].
    """
    features, width = tile_features(model.network), model.network.width
    return _block(model, features, width, plane, rows, columns, statistics, tile_side, "none")


def _block(model, compute, channels, plane, rows, columns, statistics, tile_side, averaging):
    """float32 [h, w, channels] of what is computed for tiles."""
    depth = model.network.depth
    step, before = tile_step(tile_side, depth), context(depth)
    views = turned_views(averaging)
    parts = [_in_view(rows, columns, plane.shape, *view) for view in views]
    # As far as the tiles of some view reach beyond some side of the block.
    around = max(
        overhang
        for line in itertools.chain(*parts)
        for overhang in (
            line.start - _origins(line, step)[0] + before,
            _origins(line, step)[-1] + tile_side - before - line.stop,
        )
    )
    seen = mirrored_part(
        plane,
        *(rows.start - around, rows.stop + around),
        *(columns.start - around, columns.stop + around),
    )
    output = np.empty((rows.stop - rows.start, columns.stop - columns.start, channels), np.float32)
    corners = [tuple(line.start for line in part) for part in parts]
    tiles = _tiles_of_views(
        seen, output, averaging, tile_side, depth, corners=corners, around=around
    )
    batch_size = tiles_per_batch(model.network, tile_side)
    _predict_tiles(model, compute, tiles, statistics, averaging, batch_size, output)
    return output


def _predict_tiles(model, compute, tiles, statistics, averaging, batch_size, output) -> None:
    """Fills float32 [H, W, channels], which the tiles write to."""
    if averaging != "none":
        output[:] = 0
    ahead: deque[tuple[list[Write], jax.Array]] = deque()
    for batch in _batched(tiles, batch_size):
        pixels = [tile for tile, _ in batch]
        # The last batch is filled up, so that there is one compilation for each tile side.
        pixels += pixels[:1] * (batch_size - len(batch))
        inputs = np.stack(pixels) if batch_size > 1 else pixels[0][None]
        results = compute(model.params, _normalised(inputs, *statistics))
        results.copy_to_host_async()
        # The device computes while the host writes what came before.
        ahead.append(([write for _, write in batch], results))
        if len(ahead) > _batches_ahead():
            _write(*ahead.popleft())
    while ahead:
        _write(*ahead.popleft())
    if averaging != "none":
        np.clip(output, 0, 1, out=output)  # averages may exceed 1 by rounding


def _normalised(tiles, mean, std):
    """As `normalise`, bit for bit, on the device."""
    with _in_64_bits(True):
        return _normalise_tiles(tiles.astype(tiles.dtype.newbyteorder("="), copy=False), mean, std)


_normalise_tiles = jax.jit(normalise)


@functools.cache
def tile_probabilities(network: UNet) -> Callable[[Any, jax.Array | np.ndarray], jax.Array]:
    """The compiled predict(params, tiles [N, side, side, C]) -> probabilities, float32.

    Soft-max of the network's output for normalised tiles, averaged over the ensemble, which is the
    leading axis of the parameters; its members take turns, so that memory is needed for only one.
    """

    def predict(params, tiles):
        def member(p):
            return jax.nn.softmax(cast(jax.Array, network.apply({"params": p}, tiles)))

        # At most 1 also where a device divides less exactly.
        return jnp.minimum(jax.lax.map(member, params).mean(0), 1)

    return jax.jit(predict, compiler_options=compiler_options())


@functools.cache
def tile_features(network: UNet) -> Callable[[Any, jax.Array | np.ndarray], jax.Array]:
    """The compiled features(params, tiles [N, side, side, C]) -> what the last layer sees, float32.

    For parameters with a leading axis of one member.
    """
    last = "expanding1_conv2" if network.depth > 1 else "contracting1_conv2"

    def features(params, tiles):
        _, seen = network.apply(
            {"params": jax.tree.map(lambda x: x[0], params)},
            tiles,
            capture_intermediates=lambda module, _: module.name == last,
        )
        (convolved,) = seen["intermediates"][last]["__call__"]
        return relu(convolved).astype(jnp.float32)

    return jax.jit(features, compiler_options=compiler_options())


def _checked(image, channels):
    if _is_masked(image):
        raise ValueError(
            "The model does not take a masked array, because its masked pixels would be treated as"
            " measured ones; give image.filled(value)."
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
    return image.reshape(*image.shape[:2], channels)


def _is_masked(image):
    parts = image if isinstance(image, list | tuple) else ()
    return isinstance(image, np.ma.MaskedArray) or any(map(_is_masked, parts))


def _batches_ahead():
    """How many an accelerator has to compute while the host writes what came before."""
    # A CPU writes in no time, and its next tile then takes memory that it has had before.
    return 0 if jax.default_backend() == "cpu" else 3


def _batched(items, size):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(writes, probabilities):
    for write, tile_output in zip(writes, np.asarray(probabilities), strict=False):
        write(tile_output)


def _tiles(image, output, averaging, side, depth) -> tuple[Iterator[Tile], int]:
    """The tiles of all views, and their number."""
    height, width, _ = output.shape
    if averaging == "rotations":
        return rotated_tiles(image, output, side, depth)
    step = tile_step(side, depth)
    count = len(turned_views(averaging)) * math.ceil(height / step) * math.ceil(width / step)
    return _tiles_of_views(image, output, averaging, side, depth), count


def _tiles_of_views(
    image, output, averaging, side, depth, *, corners=None, around=0
) -> Iterator[Tile]:
    """The tiles of an image that is not rotated, or of a block, see `_upright_tiles`."""
    views = turned_views(averaging)
    corners = corners or [(0, 0)] * len(views)
    for (turns, flip), corner in zip(views, corners, strict=True):
        yield from _upright_tiles(
            np.rot90(image, turns)[:, ::flip],
            np.rot90(output, turns)[:, ::flip],
            1 / len(views),
            side,
            depth,
            corner=corner,
            around=around,
        )


def turned_views(averaging: str) -> list[tuple[int, int]]:
    """Quarters of a turn, and then 1, or -1 for the columns in reverse; not of "rotations"."""
    return [(0, 1)] if averaging == "none" else [(k, flip) for k in range(4) for flip in (1, -1)]


def _in_view(rows, columns, shape, turns, flip):
    """Where rows and columns of an image lie in a view of it."""
    height, width = shape[:2]
    for _ in range(turns):
        rows, columns = slice(width - columns.stop, width - columns.start), rows
        height, width = width, height
    if flip == -1:
        columns = slice(width - columns.stop, width - columns.start)
    return rows, columns


def _origins(line, step):
    """Where the tiles begin that write to a line of pixels."""
    return range(line.start // step * step, line.stop, step)


def _upright_tiles(image, output, weight, side, depth, *, corner, around) -> Iterator[Tile]:
    """Tiles of one view; `output` is the same view of the array to write to, or to add to.

    The output begins at a `corner` of the view, and `image` has so many pixels around it.
    """
    step = tile_step(side, depth)
    before, after = context(depth), side - context(depth)
    rows, columns = (slice(c, c + n) for c, n in zip(corner, output.shape, strict=False))
    for y in _origins(rows, step):
        for x in _origins(columns, step):
            top, left = y - rows.start, x - columns.start  # in the output
            first_row, first = max(-top, 0), max(-left, 0)  # of the tile that it takes
            target = output[max(top, 0) : top + step, max(left, 0) : left + step]

            def write(probabilities, target=target, first_row=first_row, first=first):
                height, width, _ = target.shape
                probabilities = probabilities[first_row:, first:][:height, :width]
                if weight == 1:
                    target[:] = probabilities
                else:
                    target += np.float32(weight) * probabilities

            top, left = top + around, left + around  # in the image
            sides = top - before, top + after, left - before, left + after
            yield mirrored_part(image, *sides), write
