"""Warping error (Jain et al. 2010): only mergers and splits count, however membranes are shifted.

The labels are deformed towards the prediction without changing their topology. A pixel that still
differs afterwards means that a cell was lost, added, pierced, merged with another or split; only
the last two are counted.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from unet_jax.compiled import compiled
from unet_jax.example import IGNORED
from unet_jax.metrics.components import components
from unet_jax.metrics.curve import THRESHOLDS, Score, least, of_slices

#: Thresholds and radius, in pixels, of the challenge's two settings.
SETTINGS = {"2015": (THRESHOLDS[:10], 20), "2016": (THRESHOLDS[1:10], 10)}

#: The indices of splits and those of merges in a flat slice, int64.
Places = tuple[np.ndarray, np.ndarray]


class WarpingScore(NamedTuple):
    """The warping error at its best threshold, and at all of them.

    Attributes:
      value: the error, in [0, 1]: the share of pixels that split or merge at `threshold`.
      threshold: the first of `thresholds` that gives `value`.
      thresholds: a pixel is predicted to be cell where its probability exceeds the threshold.
      values: the error at each threshold.
      split: predicted membrane that splits a cell, at `threshold`; bool [H, W] for each slice, a
        stack [S, H, W] for a stack.
      merge: the same of predicted cell that merges two cells.
    """

    value: float
    threshold: float
    thresholds: tuple[float, ...]
    values: tuple[float, ...]
    split: Sequence[np.ndarray]
    merge: Sequence[np.ndarray]


def warping_error(
    labels: Sequence[np.ndarray], probabilities: Sequence[np.ndarray], *, setting: str = "2015"
) -> WarpingScore:
    """The share of pixels that split or merge cells, whatever else differs.

    A prediction of membrane everywhere scores 0: the error means something only together with
    another one, such as `rand_error`.

    In Fiji, slices whose labels are all cell have no splits; here they do.

    Args:
      labels: bool or integer [H, W] for each slice, of any sizes, or a stack [S, H, W]; 0 =
        membrane, -1 = ignored, any one other value = cell.
      probabilities: float in [0, 1], of cell, of the same shapes; rounded to float32 as in the
        challenge.
      setting: "2015" with thresholds from 0 on and a radius of 20 pixels around a possible split,
        or "2016" with thresholds from 0.1 on and a radius of 10.

    Raises:
      ValueError: an argument is not as described; slices are counted from 0.
    """
    if setting not in SETTINGS:
        raise ValueError(f"setting must be {' or '.join(map(repr, SETTINGS))}, not {setting!r}.")
    per_slice = of_slices(partial(splits_and_merges, setting=setting), labels, probabilities)
    pixels = sum(int(np.count_nonzero(np.asarray(label) != IGNORED)) for label in labels)
    score = warping_score(per_slice, pixels, setting)
    best = score.thresholds.index(score.threshold)
    split, merge = zip(
        *(drawn(places[best], np.shape(a)) for a, places in zip(labels, per_slice, strict=True)),
        strict=True,
    )
    if isinstance(labels, np.ndarray):
        split, merge = np.stack(split), np.stack(merge)
    return WarpingScore(*score, split, merge)


def warping_score(per_slice: Sequence[list[Places]], pixels: int, setting: str) -> Score:
    """The warping error of slices.

    Args:
      per_slice: `splits_and_merges` of each.
      pixels: the number of pixels that count, in all of them.
      setting: as in `warping_error`.
    """
    counts = np.sum([[s.size + m.size for s, m in places] for places in per_slice], axis=0)
    return least(counts / pixels, SETTINGS[setting][0])


def drawn(places: Places, shape: tuple[int, int]) -> np.ndarray:
    """bool [2, *shape]: where a slice of that shape has its splits and its merges."""
    maps = np.zeros((2, *shape), bool)
    for pixels, of_kind in zip(places, maps, strict=True):
        of_kind.flat[pixels] = True
    return maps


def splits_and_merges(cell: np.ndarray, proposal: np.ndarray, setting: str) -> list[Places]:
    """The splits and merges of one slice, at each threshold.

    Args:
      cell: the labels, bool [H, W].
      proposal: probability of cell, float64 [H, W].
      setting: as in `warping_error`.
    """
    thresholds, radius = SETTINGS[setting]
    height, width = cell.shape
    if radius > min(height, width):
        radius = max(height, width)  # the challenge takes the whole of so small a slice
    cell = np.pad(cell, 1)  # so that a pixel's neighbours always exist
    at_thresholds = []
    for threshold in thresholds:
        # Column by column, then stably by distance: which of two pixels flips first matters.
        x, y = np.nonzero((cell[1:-1, 1:-1] != (proposal > threshold)).T)
        order = np.argsort(-np.abs(proposal[y, x] - threshold).astype(np.float32), kind="stable")
        pixels = np.ravel_multi_index((y[order] + 1, x[order] + 1), cell.shape)

        warped = cell.copy()
        left = _warp(warped, pixels)
        split = _splits(warped, left, radius)
        merge = _merges(warped, components(warped), left)
        y, x = np.unravel_index(left, cell.shape)
        left = (y - 1) * width + x - 1
        at_thresholds.append((left[split], left[merge]))
    return at_thresholds


@compiled
def _warp(cell: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Flips the simple ones of the pixels in their order, again and again, until none is left.

    Args:
      cell: bool [H + 2, W + 2], changed in place.
      pixels: flat indices, int64 [N].

    Returns:
      The pixels not flipped.
    """
    width = cell.shape[1]
    left = pixels.copy()
    count = left.size
    while True:
        kept = 0
        for pixel in left[:count]:
            if _is_simple(cell, pixel // width, pixel % width):
                cell.flat[pixel] = not cell.flat[pixel]
            else:
                left[kept] = pixel
                kept += 1
        if kept == count:
            return left[:count]
        count = kept


@compiled
def _is_simple(cell: np.ndarray, y: int, x: int) -> bool:
    """Whether the topology stays the same if the pixel changes.

    That is so if, among its 8 neighbours, there are exactly one 4-connected component of cell that
    touches the pixel by a side and exactly one 8-connected component of membrane.
    """
    north, east = cell[y - 1, x], cell[y, x + 1]
    south, west = cell[y + 1, x], cell[y, x - 1]
    # Both numbers are that of the gaps behind such cells on the way around the pixel. Without a gap
    # one of the two is 0.
    gaps = (
        (north and not (cell[y - 1, x + 1] and east))
        + (east and not (cell[y + 1, x + 1] and south))
        + (south and not (cell[y + 1, x - 1] and west))
        + (west and not (cell[y - 1, x - 1] and north))
    )
    return gaps == 1


@compiled
def _merges(cell: np.ndarray, labels: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Which pixels of membrane have two cells among their 8 neighbours: bool [N]."""
    width = cell.shape[1]
    merges = np.zeros(pixels.size, np.bool_)
    for k in range(pixels.size):
        y, x = pixels[k] // width, pixels[k] % width
        if cell[y, x]:
            continue
        first = 0
        for label in labels[y - 1 : y + 2, x - 1 : x + 2].flat:
            if label and not first:
                first = label
            elif label and label != first:
                merges[k] = True
    return merges


@compiled
def _splits(cell: np.ndarray, pixels: np.ndarray, radius: int) -> np.ndarray:
    """Which pixels of cell are all that joins their neighbours, bool [N].

    Without the pixel, the cells among its 8 neighbours lie in two components or more of the square
    of (2 radius + 1)^2 pixels around it.
    """
    width = cell.shape[1]
    splits = np.zeros(pixels.size, np.bool_)
    queue = np.empty((cell.size, 2), np.int64)
    reached = np.full(cell.shape, -1, np.int64)  # the last k for which a pixel was reached
    for k in range(pixels.size):
        y, x = pixels[k] // width, pixels[k] % width
        if not cell[y, x]:
            continue
        reached[y, x] = k  # no path may lead through it
        first, last, missing = 0, 0, 0
        for v in range(y - 1, y + 2):
            for u in range(x - 1, x + 2):
                if cell[v, u] and reached[v, u] != k:
                    missing += 1
                    if missing == 1:
                        queue[0] = v, u
        if missing:
            reached[queue[0, 0], queue[0, 1]] = k
            last = 1
        while first < last and missing:
            v, u = queue[first]
            first += 1
            if abs(v - y) <= 1 and abs(u - x) <= 1:
                missing -= 1
            for b, a in ((v - 1, u), (v, u - 1), (v, u + 1), (v + 1, u)):
                in_square = abs(b - y) <= radius and abs(a - x) <= radius
                if in_square and cell[b, a] and reached[b, a] != k:
                    reached[b, a] = k
                    queue[last] = b, a
                    last += 1
        splits[k] = missing > 0
    return splits
