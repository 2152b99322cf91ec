"""Where touching cells are divided: a watershed of the distance to the background.

From each pixel a path leads up to a summit; pixels with the same summit form a basin. Two basins
belong to one cell unless the pass between them is narrow compared with the smaller one. Everything
here looks at a pixel and its four neighbours, or at tables of summits and passes, so that the
blocks of a plane give the same cells as the plane, see `volumes.cells`.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_jax.compiled import compiled

# Pixels; what is farther from the background is not narrow.
_FARTHEST = 50
# Pixels, of a Gaussian: outlines are rough, and each notch would make a summit.
_SIGMA, _TRUNCATE = 1.0, 4
#: Pixels around a part of a plane on which its basins depend.
REACH = _FARTHEST + _TRUNCATE + 1


class Basins(NamedTuple):
    """The basins of a part of a plane, in the order of their first pixels, n of them.

    Attributes:
      labels: int32 [h, w], 0 = background, 1 ... n = the basins.
      height: float64 [h, w], pixels from the background, smoothed.
      sizes: int64 [n], their pixels.
      summits: float64 [n], the heights of the summits, 0 for those outside the part.
      exits: int64 [n, 2], row and column of the first pixel outside the part on the way up, -1
        where the summit lies in the part.
      between: where the basins of the part touch.
    """

    labels: np.ndarray
    height: np.ndarray
    sizes: np.ndarray
    summits: np.ndarray
    exits: np.ndarray
    between: "Passes"


class Passes(NamedTuple):
    """The highest passes between pairs of basins that touch.

    Attributes:
      one: int [N], a basin, counted from 0.
      other: int [N], one with a larger number.
      height: float64 [N], of the lower of the two pixels at which they meet.
    """

    one: np.ndarray
    other: np.ndarray
    height: np.ndarray


def basins(mask: np.ndarray, part: tuple[slice, slice], *, neck_ratio: float) -> Basins:
    """The basins of a part of a plane.

    Args:
      mask: bool [H, W], true in cells, with `REACH` pixels around the part, or to the plane's end.
      part: rows and columns of the mask.
      neck_ratio: see `joined`; at 0 each connected piece is a basin of height 0.
    """
    if neck_ratio == 0:
        labels, count = ndimage.label(mask[part])
        sizes, nowhere = np.bincount(labels.ravel())[1:], np.zeros(0, np.int64)
        return Basins(
            labels,
            np.zeros(labels.shape),
            sizes,
            np.zeros(count),
            np.full((count, 2), -1),
            Passes(nowhere, nowhere, np.zeros(0)),
        )
    height = _heights(mask)
    top, bottom = part[0].indices(mask.shape[0])[:2]
    left, right = part[1].indices(mask.shape[1])[:2]
    labels, ends = _climb(height, mask, top, bottom, left, right)
    rows, columns = ends.T
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
    summits = np.where(inside, height[rows, columns], 0.0)
    return Basins(
        labels,
        height[part],
        np.bincount(labels.ravel())[1:],
        summits,
        np.where(inside[:, None], -1, ends),
        _passes(labels, height[part]),
    )


def _heights(mask):
    if mask.all():  # SciPy would take a background for granted
        distance = np.full(mask.shape, float(_FARTHEST))
    else:
        distance = np.minimum(ndimage.distance_transform_edt(mask), _FARTHEST)
    return ndimage.gaussian_filter(distance, _SIGMA, mode="nearest", radius=_TRUNCATE)


@compiled
def _climb(height, mask, top, bottom, left, right):
    """Labels of the part, and where each one's way up ends: at a summit, or outside."""
    rows, columns = height.shape
    towards = np.full(height.size, -1, np.int64)
    for y in range(top, bottom):
        for x in range(left, right):
            if mask[y, x]:
                best, at = height[y, x], y * columns + x
                # Of several equally high ones, the first in the order of the plane counts.
                for v, u in ((y - 1, x), (y, x - 1), (y, x + 1), (y + 1, x)):
                    if 0 <= v < rows and 0 <= u < columns and mask[v, u]:
                        there = v * columns + u
                        if height[v, u] > best or (height[v, u] == best and there < at):
                            best, at = height[v, u], there
                towards[y * columns + x] = at
    labels = np.zeros(height.size, np.int32)
    ends = [(0, 0)]
    for y in range(top, bottom):
        for x in range(left, right):
            pixel = y * columns + x
            if not mask[y, x] or labels[pixel]:
                continue
            end = pixel
            while labels[end] == 0 and towards[end] != end and towards[end] >= 0:
                end = towards[end]
            if labels[end] == 0:
                labels[end] = len(ends)
                ends.append((end // columns, end % columns))
            while labels[pixel] == 0:
                labels[pixel] = labels[end]
                pixel = towards[pixel]
    part = labels.reshape(height.shape)[top:bottom, left:right].copy()
    return part, np.array(ends)[1:]


def _passes(labels, height):
    rows = passes_between(labels[:-1], height[:-1], labels[1:], height[1:])
    columns = passes_between(labels[:, :-1], height[:, :-1], labels[:, 1:], height[:, 1:])
    return highest([rows, columns])


def passes_between(
    labels: np.ndarray, height: np.ndarray, other_labels: np.ndarray, other_height: np.ndarray
) -> Passes:
    """The passes between pixels and others that touch them, all of one shape; pairs may repeat."""
    meet = (labels != other_labels) & (labels > 0) & (other_labels > 0)
    # Labels count from 1 on.
    pair = labels[meet].astype(np.int64) - 1, other_labels[meet].astype(np.int64) - 1
    lower = np.minimum(height[meet], other_height[meet])
    return Passes(np.minimum(*pair), np.maximum(*pair), lower)


def highest(some: list[Passes]) -> Passes:
    """The highest pass of each pair, from the highest to the lowest."""
    one, other, height = map(np.concatenate, zip(*some, strict=True))
    order = np.lexsort((-height, other, one))
    new = np.ones(order.size, bool)
    new[1:] = (np.diff(one[order]) != 0) | (np.diff(other[order]) != 0)
    order = order[new]
    order = order[np.argsort(-height[order], kind="stable")]
    return Passes(one[order], other[order], height[order])


def joined(
    summits: np.ndarray, sizes: np.ndarray, between: Passes, *, neck_ratio: float, smallest: int
) -> np.ndarray:
    """Which of n basins form one cell, int64 [n]: for each the basin that stands for its cell.

    Beginning with the highest pass, two cells become one if it is at least `neck_ratio` times as
    high as the lower of their summits, or if one of them has fewer than `smallest` pixels.

    Args:
      summits: float64 [n], their heights.
      sizes: int64 [n], the pixels of each basin.
      between: from `highest`.
      neck_ratio: in [0, 1].
      smallest: pixels.
    """
    return _joined(summits, sizes.copy(), *between, neck_ratio, smallest)


@compiled
def _joined(summits, sizes, one, other, height, neck_ratio, smallest):
    stands_for = np.arange(len(summits))
    for i in range(len(one)):
        a, b = _end(stands_for, one[i]), _end(stands_for, other[i])
        if summits[a] < summits[b] or (summits[a] == summits[b] and b < a):
            a, b = b, a
        if a != b and (height[i] >= neck_ratio * summits[b] or min(sizes[a], sizes[b]) < smallest):
            stands_for[b] = a
            sizes[a] += sizes[b]
    for i in range(len(summits)):
        stands_for[i] = _end(stands_for, i)
    return stands_for


@compiled
def _end(stands_for, basin):
    """Where the chain ends that begins with a basin; it is shortened on the way."""
    while stands_for[basin] != basin:
        stands_for[basin] = stands_for[stands_for[basin]]
        basin = stands_for[basin]
    return basin
