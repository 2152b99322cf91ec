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

from unet_jax.compiled import compiled
from unet_jax.grey_values import MAX_GREY_VALUE, are_grey_values, grey_value_statistics
from unet_jax.hardware import device_memory_bytes, is_out_of_memory
from unet_jax.layers import compiler_options, relu
from unet_jax.model import Model
from unet_jax.network import UNet, context, valid_input_sides
from unet_jax.normalisation import normalise
from unet_jax.resizing import resized, scaled_size

# Elsewhere before JAX 0.8.
_in_64_bits = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64

logger = logging.getLogger("unet_jax")

#: How the probabilities of several views of the image may be averaged.
AVERAGING = ("none", "rotations", "symmetries")

# Pixels that a tile contributes to each side of the output; multiples of the max-pooling grid up to
# depth 7. Few, because each tile side is compiled once; dense enough that large images take less
# than 1.3 times the operations of the whole at once.
_STEPS = (64, 128, 256, 384, *range(512, 1025, 64))
# More input pixels at a time do not make an accelerator any faster.
_PIXELS_IN_FLIGHT = 2**20
# Memory in feature maps of the first level's size and width. XLA's plans take 2.1 to 3.1 of them on
# a CPU and up to 2.4 on a GPU, where the convolutions may ask for more.
_MAPS_ALIVE = 4


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
        result = resized(scaled, (height, width))
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
    nearest = valid_input_sides(tile_side, depth)
    if tile_side not in nearest or tile_step(tile_side, depth) < 1:
        nearest = [side for side in nearest if tile_step(side, depth) > 0]
        nearest = nearest or [side_of_step(2 ** (depth - 1), depth)]
        raise ValueError(
            f"A U-Net of depth {depth} cannot take tiles of side {tile_side}; "
            f"the nearest valid ones: {', '.join(map(str, nearest))}."
        )

    try:
        statistics = grey_value_statistics(image, model.percentiles)
    except ValueError as error:
        raise ValueError(f"The image {error}.") from None
    out = np.empty(shape, np.float32) if out is None else out  # the statistics' memory is free now
    for fitting, batch_size in _attempts(model.network, tile_side):
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
            logger.warning("Out of memory with %d tile(s) of side %d.", batch_size, fitting)
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
    seen = _part(
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


def _attempts(network: UNet, side: int) -> Iterator[tuple[int, int]]:
    """Tile sides and numbers of tiles at a time, from what should fit to the smallest possible."""
    batch_size = tiles_per_batch(network, side)
    yield side, batch_size
    if batch_size > 1:
        yield side, 1
    for smaller in sorted((side_of_step(step, network.depth) for step in _STEPS), reverse=True):
        if smaller < side:
            yield smaller, 1


def _predict_tiles(model, compute, tiles, statistics, averaging, batch_size, output) -> None:
    """Fills float32 [H, W, channels], which the tiles write to."""
    if averaging != "none":
        output[:] = 0
    ahead: deque[tuple[list[_Write], jax.Array]] = deque()
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


def tile_step(tile_side: int, depth: int) -> int:
    """Pixels from one tile's origin to the next one's, a multiple of the max-pooling grid.

    The output is at least one pixel larger, for the interpolation of rotated tiles.
    """
    grid = 2 ** (depth - 1)
    return (tile_side - 2 * context(depth) - 1) // grid * grid


def side_of_step(step: int, depth: int) -> int:
    """The smallest tile side with this `tile_step`, a multiple of the max-pooling grid."""
    return valid_input_sides(step + 2 * context(depth) + 1, depth)[-1]


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
    # SciPy's interpolation does not know float16.
    image = image.astype(np.float32) if image.dtype == np.float16 else image
    return image.reshape(*image.shape[:2], channels)


def _is_masked(image):
    parts = image if isinstance(image, list | tuple) else ()
    return isinstance(image, np.ma.MaskedArray) or any(map(_is_masked, parts))


def _batches_ahead():
    """How many an accelerator has to compute while the host writes what came before."""
    # A CPU writes in no time, and its next tile then takes memory that it has had before.
    return 0 if jax.default_backend() == "cpu" else 3


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


def _write(writes, probabilities):
    for write, tile_output in zip(writes, np.asarray(probabilities), strict=False):
        write(tile_output)


# A tile to predict, [side, side, C] of grey values, and what writes its probabilities.
_Write = Callable[[np.ndarray], None]
_Tile = tuple[np.ndarray, _Write]


def _tiles(image, output, averaging, side, depth) -> tuple[Iterator[_Tile], int]:
    """The tiles of all views, and their number."""
    height, width, _ = output.shape
    step = tile_step(side, depth)
    if averaging == "rotations":
        angles = [2 * math.pi * k / 7 for k in range(7)]
        places = [p for angle in angles for p in _turned_places(height, width, angle, step, depth)]
        tiles = (_turned_tile(image, output, place, step, side, depth) for place in places)
        return tiles, len(places)
    count = len(turned_views(averaging)) * math.ceil(height / step) * math.ceil(width / step)
    return _tiles_of_views(image, output, averaging, side, depth), count


def _tiles_of_views(
    image, output, averaging, side, depth, *, corners=None, around=0
) -> Iterator[_Tile]:
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


def _upright_tiles(image, output, weight, side, depth, *, corner, around) -> Iterator[_Tile]:
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
            yield _part(image, top - before, top + after, left - before, left + after), write


def _part(image, top, bottom, left, right):
    """The pixels [top ... bottom - 1, left ... right - 1] of an image mirrored at its border."""
    height, width, _ = image.shape
    rows, columns = mirror_indices(top, bottom, height), mirror_indices(left, right, width)
    # Only what is needed of an image that may be larger than the memory.
    first_row, first = rows.min(), columns.min()
    part = image[first_row : rows.max() + 1, first : columns.max() + 1]
    if left < 0 or right > width:
        # One by one, which is slow, only those beyond the image.
        start, end = np.clip((0, width), left, right)
        before, after = columns[: start - left] - first, columns[end - left :] - first
        inside = part[:, start - first : end - first]
        part = np.concatenate([part.take(before, 1), inside, part.take(after, 1)], axis=1)
    if top < 0 or bottom > height:
        part = part.take(rows - first_row, axis=0)
    return part


def _turned_places(height, width, angle, step, depth):
    """The tiles that see something of the image turned by `angle` (radians) about its centre.

    Yields the turns from there to the image and back, see `_turned`, a tile's first row and column
    in the turned plane, and the slices of the image outside of which it writes no pixel.
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


def _turned_tile(image, output, place, step, side, depth) -> _Tile:
    """A tile of the turned image, interpolated linearly there and back."""
    forth, back, origin, part = place
    top, left = (first - context(depth) for first in origin)
    (y, last_y), (x, last_x) = _reach((top, top + side - 1), (left, left + side - 1), forth)
    seen = _part(image, y, last_y + 2, x, last_x + 2).astype(np.float32, order="C")
    tile = np.zeros((side, side, image.shape[-1]), np.float32)
    _add_turned(tile, (top, left), seen, (y, x), max(seen.shape), forth, np.float32(1))

    def write(probabilities):
        corner, share = (part[0].start, part[1].start), np.float32(1 / 7)
        _add_turned(output[part], corner, probabilities, origin, step, back, share)

    return tile, write


def _reach(rows, columns, turn):
    """The first and last row, and column, that a turned rectangle reaches, rounded down."""
    y, x = np.transpose([_turned(y, x, turn) for y in rows for x in columns])
    return [(math.floor(line.min()), math.floor(line.max())) for line in (y, x)]


@compiled
def _turned(y, x, turn):
    """Turned coordinates, the same bits wherever they are asked for."""
    cos, sin, cy, cx = turn
    return cos * (y - cy) + cy - sin * (x - cx), sin * (y - cy) + cx + cos * (x - cx)


@compiled
def _add_turned(target, corner, source, source_corner, step, turn, weight):
    """Adds the pixels of `source`, turned and interpolated linearly, to those of `target`.

    Both are parts [H, W, C] of planes, in which they begin at their corners. What lies beyond the
    first `step` rows and columns of the source is left to its neighbours; whole numbers decide, so
    that each pixel of the target is added to by exactly one of them.
    """
    height, width, channels = target.shape
    for i in range(height):
        for j in range(width):
            y, x = _turned(corner[0] + i, corner[1] + j, turn)
            floor_y, floor_x = math.floor(y), math.floor(x)
            k, m = floor_y - source_corner[0], floor_x - source_corner[1]
            if 0 <= k < step and 0 <= m < step:
                y, x = np.float32(y - floor_y), np.float32(x - floor_x)
                for c in range(channels):
                    upper = source[k, m, c] + x * (source[k, m + 1, c] - source[k, m, c])
                    lower = source[k + 1, m, c]
                    lower += x * (source[k + 1, m + 1, c] - lower)
                    target[i, j, c] += weight * (upper + y * (lower - upper))
