"""From the probability of cell to single cells."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unet_jax.basins import Basins, Passes, basins, joined
from unet_jax.checked_settings import check, setting


@dataclass(frozen=True)
class InstanceSettings:
    """The settings of `find_cells`; in pixels of the image, except the first and the third.

    Attributes:
      threshold: a pixel is cell if its probability of cell exceeds this.
      largest_hole: holes of up to this many pixels are filled.
      neck_ratio: cells that touch are separated where they are narrower than this share of the
        smaller one, see `basins`; 0 separates none.
      smallest_cell: anything smaller, not counting its border, is dropped.
      border: how far a cell grows over the background that separates it from others.
    """

    threshold: float = setting(0.5, at_least=0, at_most=1)
    largest_hole: int = setting(20, at_least=0)
    neck_ratio: float = setting(0.0, at_least=0, at_most=1)
    smallest_cell: int = setting(20, at_least=0)
    border: float = setting(0.0, at_least=0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


def find_cells(
    probability: np.ndarray, settings: InstanceSettings = InstanceSettings()
) -> np.ndarray:
    """The single cells of one image.

    Args:
      probability: float [H, W] in [0, 1], of cell, such as `predict_tiled(...)[..., 1]`.
      settings: see `InstanceSettings`.

    Returns:
      int32 [H, W]: 0 = background, 1 ... n = the cells in the order of their first pixels; no two
      overlap.

    Raises:
      ValueError: a probability that has another shape, has no pixels, or is not in [0, 1].

    Examples:
      >>> probability = np.array([[0.9, 0.1, 0.8], [0.7, 0.2, 0.9]])
      >>> find_cells(probability, InstanceSettings(largest_hole=0, smallest_cell=1))
      array([[1, 0, 2],
             [1, 0, 2]], dtype=int32)
    """
    return grown(numbered(divided(probability, settings), settings), settings)


def divided(probability: np.ndarray, settings: InstanceSettings) -> Basins:
    """The basins that cells consist of, by the first three settings; errors as in `find_cells`."""
    if probability.ndim != 2 or not probability.size:
        raise ValueError(f"Expected a probability [H, W], not one of shape {probability.shape}.")
    if not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails too
        raise ValueError(
            f"Probabilities must lie in [0, 1], not from {probability.min()} to "
            f"{probability.max()}."
        )
    mask = fill_holes(probability <= settings.threshold, settings)
    return basins(mask, np.s_[:, :], neck_ratio=settings.neck_ratio)


def numbered(found: Basins, settings: InstanceSettings) -> np.ndarray:
    """The cells before they grow, int32 [H, W], like the result of `find_cells`."""
    numbers = number_cells(found.summits, found.sizes, found.between, settings)
    return np.append(0, numbers).astype(np.int32)[found.labels]


def fill_holes(background: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """Where cells are, bool [H, W]: all but the background, with small holes filled."""
    # Cells are connected by their sides, so the background between them also by its corners.
    holes = ndimage.label(background, np.ones((3, 3)))[0]
    large = np.bincount(holes.ravel()) > settings.largest_hole
    large[0] = False
    return ~large[holes]


def number_cells(
    summits: np.ndarray, sizes: np.ndarray, between: Passes, settings: InstanceSettings
) -> np.ndarray:
    """The cell of each basin, int64 [n], numbered from 1; 0 where it is too small.

    Arguments as for `joined`; the basins, and so the cells, are in the order of their first pixels.
    """
    smallest = settings.smallest_cell
    cell = joined(summits, sizes, between, neck_ratio=settings.neck_ratio, smallest=smallest)
    _, first, cell = np.unique(cell, return_index=True, return_inverse=True)
    pixels = np.zeros(first.size, np.int64)
    np.add.at(pixels, cell, sizes)
    order, numbers = np.argsort(first), np.zeros(first.size, np.int64)
    kept = pixels[order] >= max(smallest, 1)
    numbers[order] = np.where(kept, np.cumsum(kept), 0)
    return numbers[cell]


def grown(cells: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """The cells, int [H, W], grown by the pixels around them up to the width of the border."""
    if settings.border < 1 or not cells.any():  # nothing is that near
        return cells
    nearest, distance = nearest_cells(cells)
    return np.where(distance <= settings.border, nearest, 0)


def nearest_cells(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel the nearest cell, as in `cells`, and its distance, float64 [H, W].

    If there is no cell, neither means anything.
    """
    distance, nearest = ndimage.distance_transform_edt(cells == 0, return_indices=True)
    return cells[tuple(nearest)], distance
