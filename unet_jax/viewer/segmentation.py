"""Segmentation in pieces, between which it can be cancelled."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unet_jax.errors import InputError
from unet_jax.grey_values import grey_value_statistics
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_block, predict_tiled
from unet_jax.tiles import choose_tile_side, tile_step
from unet_jax.viewer.planes import Index, Planes

# Squares of a large plane by which it is normalised: their number along each axis, and side.
_SQUARES, _SQUARE_SIDE = 16, 128


class Predicted(NamedTuple):
    """A part of a plane.

    Attributes:
      plane: which one, by its leading axes.
      rows: of the part.
      columns: of the part.
      probabilities: float32 [h, w, classes].
    """

    plane: Index
    rows: slice
    columns: slice
    probabilities: np.ndarray


class Found(NamedTuple):
    """The cells of a plane, int32 [H, W]; it is the last of the plane."""

    plane: Index
    cells: np.ndarray


def segment(
    model: Model,
    settings: InstanceSettings,
    planes: Planes,
    indices: Sequence[Index],
    view: tuple[slice, slice],
) -> Iterator[Predicted | Found | InputError]:
    """The results of `predict_tiled` and `find_cells` for some planes, what is in view first.

    Of planes that are too large, only what is in view is predicted, and no cells are found. What
    cannot be segmented is an error among the results.
    """
    try:
        planes.check(model)
    except InputError as error:
        yield error
        return
    for index in indices:
        try:
            if planes.are_large:
                yield _predict_view(model, planes, index, view)
            else:
                yield from _segment_plane(model, settings, planes, index, view)
        except ValueError as error:  # the other planes may do
            yield planes.named(error)


def _segment_plane(model, settings, planes, index, view):
    image = planes.read(index)
    height, width = image.shape[:2]
    probabilities = np.empty((height, width, model.network.classes), np.float32)
    if model.scale != 1:
        predict_tiled(model, image, out=probabilities)
        yield Predicted(index, slice(0, height), slice(0, width), probabilities)
    else:
        # The tiles of `predict_tiled`, one at a time.
        side = choose_tile_side(model.network, height, width)
        pixels = image.reshape(height, width, -1)
        statistics = grey_value_statistics(pixels, model.percentiles)
        for part in _blocks(height, width, tile_step(side, model.network.depth), view):
            rows, columns = part
            block = predict_block(model, pixels, rows, columns, statistics, tile_side=side)
            probabilities[part] = block
            yield Predicted(index, rows, columns, block)
    yield Found(index, find_cells(1 - probabilities[..., 0], settings))


def _predict_view(model, planes, index, view):
    """Of a plane that is too large to be read as a whole, normalised by some of its pixels."""
    plane = _InStore(planes, index)
    tops, lefts = (
        np.unique(np.linspace(0, max(side - _SQUARE_SIDE, 0), _SQUARES, dtype=int))
        for side in plane.shape[:2]
    )
    squares = [plane[y : y + _SQUARE_SIDE, x : x + _SQUARE_SIDE] for y in tops for x in lefts]
    statistics = grey_value_statistics(np.concatenate(squares), model.percentiles)
    side = choose_tile_side(model.network, *(line.stop - line.start for line in view))
    rows, columns = view
    block = predict_block(model, plane, rows, columns, statistics, tile_side=side)
    return Predicted(index, rows, columns, block)


class _InStore:
    """A plane whose pixels are read when they are needed, [H, W, C]."""

    def __init__(self, planes: Planes, index: Index):
        self._planes, self._index = planes, index
        self.shape = (*planes.shape[-2:], planes.data.shape[-1] if planes.is_rgb else 1)

    def __getitem__(self, part):
        pixels = self._planes.read(self._index, part)
        return pixels.reshape(*pixels.shape[:2], -1)


def _blocks(height, width, step, view):
    """All blocks of a plane, those in view first."""
    blocks = [
        (slice(y, min(y + step, height)), slice(x, min(x + step, width)))
        for y in range(0, height, step)
        for x in range(0, width, step)
    ]

    def is_hidden(block):
        pairs = zip(block, view, strict=True)
        return not all(b.start < v.stop and v.start < b.stop for b, v in pairs)

    return sorted(blocks, key=is_hidden)
