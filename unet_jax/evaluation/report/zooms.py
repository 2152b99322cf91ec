"""The places in the images where the most pixels split or merge cells, magnified."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_jax.evaluation.report.pictures import Panel, Picture, pixels
from unet_jax.figures import grey_values, outlined
from unet_jax.html_pages import jpeg, png

#: Pixels of a side of the window.
ZOOM_SIDE = 96
_ZOOMS, _SCALE = 6, 4


class Zoom(NamedTuple):
    """A window of an image: how many pixels split and merge there, and its pictures."""

    name: str
    rows: slice
    columns: slice
    split: int
    merge: int
    panels: list[Panel]


def zooms(pictures: Sequence[Picture], threshold: float) -> list[Zoom]:
    """The worst windows; errors are drawn at this `threshold` of the probability of cell."""
    result = []
    for index, rows, columns in worst_windows([p.split | p.merge for p in pictures]):
        picture = pictures[index]
        part = Picture(picture.name, *(array[rows, columns] for array in picture[1:]))
        grey = grey_values(picture.image)[rows, columns]
        truth = _magnified(part.labels) > 0
        panels = [
            Panel("image, truth", jpeg(outlined(_magnified(grey), truth))),
            Panel("probability", jpeg(_magnified(pixels(255 * part.cell)))),
            Panel("errors", png(_magnified(part.errors(threshold, widen=1)))),
        ]
        split, merge = int(part.split.sum()), int(part.merge.sum())
        result.append(Zoom(picture.name, rows, columns, split, merge, panels))
    return result


def worst_windows(errors: list[np.ndarray]) -> Iterator[tuple[int, slice, slice]]:
    """The windows with the most errors, worst first, up to six that do not overlap.

    Args:
      errors: bool [H, W] for each image.

    Yields:
      The image's index, rows and columns; 96 of each, or all that the image has.
    """
    scores = [_window_scores(error) for error in errors]
    for _ in range(_ZOOMS):
        index = max(range(len(errors)), key=lambda i: scores[i].max())
        score = scores[index]
        if score.max() < 1:
            return
        top, left = np.unravel_index(score.argmax(), score.shape)
        height, width = _window_size(errors[index])
        yield index, slice(top, top + height), slice(left, left + width)
        overlapping_rows = slice(max(top - height + 1, 0), top + height)
        score[overlapping_rows, max(left - width + 1, 0) : left + width] = 0


def _window_scores(error: np.ndarray) -> np.ndarray:
    """Each window's errors, by its first row and column, plus below 1 for errors in its middle."""
    height, width = _window_size(error)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = sums[height:, width:] - sums[:-height, width:]
    counts += sums[:-height, :-width] - sums[height:, :-width]
    amid = ndimage.gaussian_filter(error.astype(float), ZOOM_SIDE / 4, mode="constant")
    top, left = height // 2, width // 2
    return counts + 0.99 * amid[top : top + counts.shape[0], left : left + counts.shape[1]]


def _window_size(error: np.ndarray) -> tuple[int, int]:
    height, width = error.shape
    return min(ZOOM_SIDE, height), min(ZOOM_SIDE, width)


def _magnified(array: np.ndarray) -> np.ndarray:
    return array.repeat(_SCALE, 0).repeat(_SCALE, 1)
