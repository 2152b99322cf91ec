"""From the probability of cell to single cells."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unet_jax.checked_settings import check, setting


@dataclass(frozen=True)
class InstanceSettings:
    """What `find_cells` goes by; all in pixels of the image, but for the threshold.

    Attributes:
      threshold: cell is where its probability exceeds this.
      largest_hole: holes of up to so many pixels are filled.
      neck: cells that touch over a width of less than twice this are separated there.
      smallest_cell: what is smaller, without its border, is dropped.
      border: how far a cell grows back over the background that separates it from others.
    """

    threshold: float = setting(0.5, at_least=0, at_most=1)
    largest_hole: int = setting(20, at_least=0)
    neck: float = setting(0.0, at_least=0)
    smallest_cell: int = setting(20, at_least=0)
    border: float = setting(0.0, at_least=0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


def find_cells(probability: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """The single cells of one image.

    Args:
      probability: float [H, W] in [0, 1], of cell, such as `predict_tiled(...)[..., 1]`.
      settings: see there.

    Returns:
      int32 [H, W]: 0 = background, 1 ... n = the cells, no two of which overlap.

    Raises:
      ValueError: a probability of another shape, without pixels, or not in [0, 1].
    """
    if probability.ndim != 2 or not probability.size:
        raise ValueError(f"Expected a probability [H, W], not one of shape {probability.shape}.")
    if not (probability.min() >= 0 and probability.max() <= 1):  # NaN fails too
        raise ValueError(
            f"Probabilities must lie in [0, 1], not from {probability.min()} to "
            f"{probability.max()}."
        )
    cells, distance = growing_cells(probability, settings)
    return np.where(distance <= settings.neck + settings.border, cells, 0)


def growing_cells(
    probability: np.ndarray, settings: InstanceSettings
) -> tuple[np.ndarray, np.ndarray]:
    """The cells before the border limits their growth; arguments as of `find_cells`.

    Returns:
      int32 [H, W], of each pixel the nearest cell that was cut and eroded by the neck, 0 if there
      is none; float64 [H, W], the distance to it in pixels.
    """
    cores = erode(fill_holes(probability <= settings.threshold, settings), settings)
    return nearest_cells(_components(cores, settings.smallest_cell))


def fill_holes(background: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """Where cell is, bool [H, W]: all but the background, without the holes that are small."""
    # Cells are connected by their sides, so the background between them also by its corners.
    return _components(background, settings.largest_hole + 1, np.ones((3, 3))) == 0


def erode(mask: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """What of a mask is farther from the background than the neck, bool [H, W]."""
    if settings.neck < 1:  # nothing is that near
        return mask
    return mask & (ndimage.distance_transform_edt(mask) > settings.neck)


def nearest_cells(cores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each pixel the cell that is nearest, as in `cores`, and the distance, float64 [H, W]."""
    distance, nearest = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    return cores[tuple(nearest)], distance


def _components(mask, smallest, structure=None):
    """The connected components 1 ... n of at least so many pixels, int32 [H, W]."""
    components = ndimage.label(mask, structure)[0]
    kept = np.bincount(components.ravel()) >= smallest
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[components]
