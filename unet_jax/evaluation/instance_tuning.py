"""How the settings by which single cells are found are chosen: by SEG, on the validation split."""

import math
from itertools import product

import numpy as np
from tqdm import tqdm

from unet_jax.example import Example
from unet_jax.instances import InstanceSettings, growing_cells
from unet_jax.metrics import seg


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
        grown = [growing_cells(p, *values) for p in probabilities]
        for border in (1.0, 0.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            settings = InstanceSettings(*values, border)
            reach = settings.neck + border
            score = seg(references, [np.where(d <= reach, cells, 0) for cells, d in grown]).value
            if score > best_score:
                best, best_score = settings, score
    return best, best_score
