"""The pictures of a report: the best and the worst images next to what is found in them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.scoring import ImageScores, Measured
from unet_jax.figures import (
    cell_colours,
    cell_picture,
    class_error_picture,
    class_picture,
    error_picture,
    grey_values,
)
from unet_jax.html_pages import jpeg, png
from unet_jax.metrics import Score
from unet_jax.metrics.warping import drawn
from unet_jax.resizing import resized

_LONGEST_SIDE = 512  # pixels of a picture in the report
_BEST, _WORST, _UNRANKED = 2, 3, 2  # images shown


class Picture(NamedTuple):
    """One scored image with everything that the report draws of it.

    Attributes:
      name: as in the result.
      image: number [H, W] or [H, W, C].
      labels: int32 [H, W], the true classes, 0 = background or membrane, or `IGNORED`.
      cell: float32 [H, W], probability of cell.
      found: int [H, W], the most probable class.
      split: bool [H, W], where the warping error finds predicted membrane that splits a cell.
      merge: bool [H, W], where it finds predicted cell that merges two.
      true_cells: int32 [H, W], the cell each pixel belongs to, 0 = none.
      found_cells: int32 [H, W], the same for the cells found.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    cell: np.ndarray
    found: np.ndarray
    split: np.ndarray
    merge: np.ndarray
    true_cells: np.ndarray
    found_cells: np.ndarray

    def errors(self, threshold: float, *, widen: int) -> np.ndarray:
        """uint8 [H, W, 3] of what is wrong at the threshold, see `error_picture`."""
        predicted = self.cell > threshold
        return error_picture(self.labels, predicted, self.split, self.merge, widen=widen)


class Panel(NamedTuple):
    """A picture with its title."""

    title: str
    address: str


class Shown(NamedTuple):
    """An image in the report: its scores, its rank among those that have one, its pictures."""

    scores: ImageScores
    rank: int | None
    of: int
    panels: list[Panel]


def pictures(images: Sequence[Measured], warping: Score | None) -> list[Picture]:
    """What is drawn for each image, with splits and merges at the warping error's threshold."""
    # Where it is not defined, nothing is split or merged.
    best = warping.thresholds.index(warping.threshold) if warping else 0
    return [
        Picture(
            name=image.example.name,
            image=image.example.image,
            labels=image.separated.labels,
            cell=image.cell,
            found=image.probabilities.argmax(-1),
            split=split,
            merge=merge,
            true_cells=image.example.instances,
            found_cells=image.cells,
        )
        for image in images
        for split, merge in [drawn(image.counts.warping[best], image.separated.labels.shape)]
    ]


def shown_images(
    images: Sequence[ImageScores],
    pictures: Sequence[Picture],
    *,
    rank_by: str,
    threshold: float,
    colours: np.ndarray,
    cells_first: bool,
) -> list[Shown]:
    """The best and the worst images with their pictures, or all if there are few.

    Of images without an annotated cell, which have no rank, those in which most cells are found.

    Args:
      images: all scored images.
      pictures: of each image.
      rank_by: a metric.
      threshold: of the probability of cell, for the errors.
      colours: of the classes, uint8 [classes, 3].
      cells_first: whether cells are coloured, and not classes.
    """
    ranked = [(v, i) for i, image in enumerate(images) if (v := image.values[rank_by]) is not None]
    ranked.sort(key=lambda pair: pair[0], reverse=METRICS[rank_by].higher)
    scored = [i for _, i in ranked]
    unscored = [i for i in range(len(images)) if i not in scored]
    unscored.sort(key=lambda i: images[i].found_cells, reverse=True)
    chosen = scored + unscored
    if len(images) > _BEST + _WORST:
        chosen = scored[:_BEST] + scored[_BEST:][-_WORST:] + unscored[:_UNRANKED]
    return [
        Shown(
            images[i],
            rank=scored.index(i) + 1 if i in scored else None,
            of=len(scored),
            panels=_panels(pictures[i], threshold, colours, cells_first),
        )
        for i in chosen
    ]


def _panels(
    picture: Picture, threshold: float, colours: np.ndarray, cells_first: bool
) -> list[Panel]:
    size = shown_size(picture.labels.shape)
    grey = pixels(resized(grey_values(picture.image), size))
    panels = [Panel("image", jpeg(grey))]
    if cells_first:
        true, found = cell_colours(picture.true_cells, picture.found_cells)
        for title, cells, of_cells in (
            ("annotated cells", picture.true_cells, true),
            ("found cells", picture.found_cells, found),
        ):
            panels.append(Panel(title, jpeg(cell_picture(grey, nearest(cells, size), of_cells))))
    else:
        truth = class_picture(picture.labels, colours)
        panels.append(Panel("truth", png(nearest(truth, size))))
    if len(colours) > 2 and not cells_first:
        for title, colour in (
            ("most probable class", class_picture(picture.found, colours)),
            ("errors", class_error_picture(picture.labels, picture.found)),
        ):
            panels.append(Panel(title, png(nearest(colour, size))))
        return panels
    panels.append(Panel("probability of cell", jpeg(pixels(255 * resized(picture.cell, size)))))
    # As wide as can be seen when the whole image is a few centimetres.
    errors = picture.errors(threshold, widen=max(picture.labels.shape) // 170)
    panels.append(Panel("errors", png(nearest(errors, size))))
    return panels


def shown_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a picture in the report."""
    height, width = shape
    scale = min(1, _LONGEST_SIDE / max(shape))
    return max(1, round(height * scale)), max(1, round(width * scale))


def nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The array [H, W, ...] at another size; each pixel has the value of the nearest one."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old // new, old - 1).astype(int)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def pixels(values: np.ndarray) -> np.ndarray:
    """Numbers rounded to uint8."""
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)
