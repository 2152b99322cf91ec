"""The table of the cells of a plane that is larger than the memory, from sums over blocks.

Columns and values are those of `measure`. Perimeter and solidity cannot be summed and are left out;
so is everything that depends on the probabilities, which need not be kept.
"""

from collections.abc import Sequence

import numpy as np

from unet_jax.measurements import ROUND, grey_value_columns
from unet_jax.volumes.cells import Part

#: By name, an array with a row for each cell.
Sums = dict[str, np.ndarray]


def sum_cells(image: np.ndarray, cells: np.ndarray, part: Part, plane: Part) -> Sums:
    """The sums over the cells in a block.

    Args:
      image: real [h, w, C].
      cells: int [h, w], the cell each pixel belongs to, 0 = none.
      part: of the plane, where the block lies.
      plane: all of it.

    Returns:
      number and pixels: int64 [n]. centre: float64 [n, 2], of a cell's pixels here, row and column
      in the plane. spread: float64 [n, 3], the sums of the squares of their distances to it along
      rows and columns, and of the products of both. total, minimum and maximum: float64 [n, C], of
      the image. at_border: bool [n].
    """
    rows, columns = np.nonzero(cells)
    numbers, cell = np.unique(cells[rows, columns], return_inverse=True)
    pixels = np.bincount(cell, minlength=numbers.size)
    y, x = (places - np.bincount(cell, places)[cell] / pixels[cell] for places in (rows, columns))
    values = image[rows, columns].astype(np.float64)
    shape = numbers.size, image.shape[-1]
    total, minimum, maximum = np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf)
    np.add.at(total, cell, values)
    np.minimum.at(minimum, cell, values)
    np.maximum.at(maximum, cell, values)
    rows, columns = rows + part.top, columns + part.left
    is_border = np.isin(rows, (plane.top, plane.bottom - 1))
    is_border |= np.isin(columns, (plane.left, plane.right - 1))
    return {
        "number": numbers.astype(np.int64),
        "pixels": pixels,
        "centre": np.stack([np.bincount(cell, places) / pixels for places in (rows, columns)], -1),
        "spread": np.stack([np.bincount(cell, p) for p in (y * y, x * x, y * x)], -1),
        "total": total,
        "minimum": minimum,
        "maximum": maximum,
        "at_border": np.bincount(cell, is_border) > 0,
    }


def table_of_sums(blocks: Sequence[Sums], pixel_size: tuple[float, float] | None) -> Sums:
    """The table of `measure` for a plane, without the columns that cannot be summed.

    Args:
      blocks: of all blocks of the plane.
      pixel_size: width and height of a pixel in micrometres; None = unknown.
    """
    every = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    numbers, cell = np.unique(every["number"], return_inverse=True)

    def added(values: np.ndarray) -> np.ndarray:
        result = np.zeros((numbers.size, *values.shape[1:]))
        np.add.at(result, cell, values)
        return result

    pixels, here = added(every["pixels"]), every["pixels"][:, None]
    centre = added(here * every["centre"]) / pixels[:, None]
    y, x = (every["centre"] - centre[cell]).T
    spread = every["spread"] + here * np.stack([y * y, x * x, y * x], -1)
    width, height = pixel_size or (1.0, 1.0)
    variances = added(spread) / pixels[:, None] * [height**2, width**2, height * width]
    eccentricity, degrees = _ellipses(*variances.T)
    area = pixels * width * height
    unit = "um" if pixel_size else "px"
    table = {
        "number": numbers,
        f"centre_x_{unit}": (centre[:, 1] + 0.5) * width,
        f"centre_y_{unit}": (centre[:, 0] + 0.5) * height,
        f"area_{unit}2": area,
        f"equivalent_diameter_{unit}": np.sqrt(4 * area / np.pi),
        "eccentricity": eccentricity,
        "orientation_degrees": degrees,
    }
    mean = added(every["total"]) / pixels[:, None]
    minimum, maximum = np.full_like(mean, np.inf), np.full_like(mean, -np.inf)
    np.minimum.at(minimum, cell, every["minimum"])
    np.maximum.at(maximum, cell, every["maximum"])
    table |= grey_value_columns(mean, minimum, maximum)
    table["at_border"] = added(every["at_border"]) > 0
    return table


def _ellipses(
    variance_y: np.ndarray, variance_x: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Eccentricity, and degrees from the x axis to the long axis, from second moments."""
    half = (variance_x - variance_y) / 2
    root = np.hypot(half, covariance)
    long = (variance_x + variance_y) / 2 + root
    # A single pixel has no extent.
    eccentricity = np.sqrt(2 * root / np.where(long > 0, long, 1))
    degrees = np.degrees(np.arctan2(-covariance, half) / 2) % 180
    return eccentricity, np.where(eccentricity < ROUND, np.nan, degrees)
