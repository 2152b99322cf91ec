"""From the probability of cell to single cells, and how to choose the settings of that step."""

import math
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from unet_jax.example import Example
from unet_jax.metrics import seg


class InstanceSettings(NamedTuple):
    """What `find_cells` goes by; all in pixels of the image, but for the threshold.

    Attributes:
      threshold: cell is where its probability exceeds this.
      largest_hole: holes of up to so many pixels are filled.
      neck: cells that touch over a width of less than twice this are separated there.
      smallest_cell: what is smaller, without its border, is dropped.
      border: how far a cell grows back over the background that separates it from others.
    """

    threshold: float = 0.5
    largest_hole: int = 20
    neck: float = 0.0
    smallest_cell: int = 20
    border: float = 1.0


def find_cells(probability: np.ndarray, settings: InstanceSettings) -> np.ndarray:
    """The single cells of one image.

    Args:
      probability: float [H, W] in [0, 1], of cell, such as `predict_tiled(...)[..., 1]`.
      settings: see there.

    Returns:
      int32 [H, W]: 0 = background, 1 ... n = the cells, no two of which overlap.
    """
    cells, distance = _growing_cells(probability, *settings[:-1])
    return np.where(distance <= settings.neck + settings.border, cells, 0)


def tune(
    examples: list[Example], probabilities: list[np.ndarray]
) -> tuple[InstanceSettings, float]:
    """The settings with the highest SEG on these examples, which must not be those reported.

    Args:
      examples: with at least one cell; sizes of cells and holes to try follow from their cells.
      probabilities: of cell, float [H, W] for each.

    Returns:
      The settings, the first of several equally good ones, and their SEG.
    """
    references = [example.instances for example in examples]
    areas = np.concatenate([np.bincount(cells[cells > 0]) for cells in references])
    smallest = int(areas[areas > 0].min())
    radius = math.sqrt(smallest / math.pi)
    grid = list(
        product(
            (0.5, 0.4, 0.6, 0.7, 0.8, 0.9),
            (smallest // 16, smallest // 4),
            (0.0, *(round(share * radius, 1) for share in (0.05, 0.1, 0.15, 0.2, 0.3, 0.4))),
            (smallest // 4,),
        )
    )
    best, best_score = None, -1.0
    for values in tqdm(grid, desc="Tuning", delay=3):
        grown = [_growing_cells(p, *values) for p in probabilities]
        for border in (1.0, 0.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            settings = InstanceSettings(*values, border)
            reach = settings.neck + border
            score = seg(references, [np.where(d <= reach, cells, 0) for cells, d in grown]).value
            if score > best_score:
                best, best_score = settings, score
    return best, best_score


def _growing_cells(probability, threshold, largest_hole, neck, smallest_cell):
    """Of each pixel the nearest core, int32 [H, W], 0 if there is none, and the distance to it."""
    # Cells are connected by their sides, so the background between them also by its corners.
    mask = _components(probability <= threshold, largest_hole + 1, np.ones((3, 3))) == 0
    cores = mask & (ndimage.distance_transform_edt(mask) > neck)
    cores = _components(cores, smallest_cell)
    distance, nearest = ndimage.distance_transform_edt(cores == 0, return_indices=True)
    return cores[tuple(nearest)], distance


def _components(mask, smallest, structure=None):
    """The connected components 1 ... n of at least so many pixels, int32 [H, W]."""
    components = ndimage.label(mask, structure)[0]
    kept = np.bincount(components.ravel()) >= smallest
    kept[0] = False
    return np.where(kept, np.cumsum(kept), 0).astype(np.int32)[components]
