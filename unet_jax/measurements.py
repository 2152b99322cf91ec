"""The measurements of single cells: a table with a row for each cell."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: The ellipse of a cell that is less eccentric has no direction.
ROUND = 1e-4


def measure(
    image: np.ndarray,
    cells: np.ndarray,
    pixel_size: float | Sequence[float] | None = None,
    *,
    probability: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Measures the cells of one image with scikit-image's `regionprops_table`.

    Args:
      image: real [H, W] or [H, W, C].
      cells: int [H, W], the cell each pixel belongs to, 0 = none.
      pixel_size: the side of a pixel in micrometres, or its width and height; None = unknown.
      probability: float [H, W, classes] in [0, 1], from `predict_tiled`, for the last columns.

    Returns:
      The columns of the table, each [number of cells], in the order of the cells' numbers:

      number.
      centre_x, centre_y, area, perimeter, equivalent_diameter (of the circle of the same area):
        their names end in _um and _um2, or _px and _px2 without a pixel size. The centre of the
        first pixel lies at half a pixel, as in ImageJ. If pixels are not square to within 0.1 %,
        the perimeter is NaN.
      eccentricity: of the ellipse with the same second moments, from 0 for a circle to 1.
      orientation_degrees: the angle by which its long axis is turned counterclockwise from the x
        axis, from 0 to 180; NaN for a circle.
      solidity: the share of the convex hull that the cell covers.
      mean, minimum, maximum: of the image; for several channels mean_1 and so on for each.
      at_border: bool, whether the cell touches the image's border, which may cut it off.
      mean_probability: the mean probability of cell.
      class: with more than two classes, the one that is most probable on average, from 1.

    Raises:
      ValueError: shapes that do not match, or a pixel size that is not positive.

    Examples:
      >>> image, cells = np.full((4, 6), 7), np.zeros((4, 6), int)
      >>> cells[1:3, 1:4] = 1
      >>> table = measure(image, cells, pixel_size=0.5)
      >>> table["area_um2"], table["mean"], table["at_border"]
      (array([1.5]), array([7.]), array([False]))
    """
    # They are slow to load.
    from skimage.measure import regionprops_table
    from skimage.segmentation import relabel_sequential

    for name, array in (("image", image), ("probability", probability)):
        if array is not None and array.shape[:2] != cells.shape:
            raise ValueError(
                f"{name}: expected a shape that begins with {cells.shape}, like the cells', not "
                f"{array.shape}."
            )
    width, height = np.broadcast_to(1.0 if pixel_size is None else pixel_size, 2)
    if not 0 < min(width, height) <= max(width, height) < np.inf:
        raise ValueError(f"pixel_size: expected more than 0, not {pixel_size}.")
    is_square = math.isclose(width, height, rel_tol=1e-3)
    # Of 1 to n, since regionprops has a list up to the largest number.
    cells, _, numbered = relabel_sequential(cells)
    values = image.reshape(*cells.shape, -1)
    if values.dtype.kind == "f":
        values = values.astype(np.float64, copy=False)  # in which the sums for the means are taken
    found = regionprops_table(
        cells,
        values,
        [
            *("label", "centroid", "area", "equivalent_diameter_area", "eccentricity"),
            *("orientation", "solidity", "intensity_mean", "intensity_min", "intensity_max"),
            *(["bbox", "perimeter"] if is_square else ["bbox"]),
        ],
        spacing=(width, width) if is_square else (height, width),
    )
    labels = found["label"]
    unit = "px" if pixel_size is None else "um"
    turned = (90 + np.degrees(found["orientation"])) % 180
    table = {
        "number": numbered[labels],
        f"centre_x_{unit}": found["centroid-1"] + width / 2,
        f"centre_y_{unit}": found["centroid-0"] + height / 2,
        f"area_{unit}2": found["area"],
        f"perimeter_{unit}": found.get("perimeter", np.full(len(labels), np.nan)),
        f"equivalent_diameter_{unit}": found["equivalent_diameter_area"],
        "eccentricity": found["eccentricity"],
        "orientation_degrees": np.where(found["eccentricity"] < ROUND, np.nan, turned),
        "solidity": found["solidity"],
    }
    channels = range(image.shape[2] if image.ndim == 3 else 1)
    mean, minimum, maximum = (
        np.stack([found[f"intensity_{of}-{channel}"] for channel in channels], -1)
        for of in ("mean", "min", "max")
    )
    table |= grey_value_columns(mean, minimum, maximum)
    top, left, bottom, right = (found[f"bbox-{side}"] for side in range(4))
    rows, columns = cells.shape
    table["at_border"] = (top == 0) | (left == 0) | (bottom == rows) | (right == columns)
    if probability is not None:
        means = np.array(
            [ndimage.mean(of_class, cells, labels) for of_class in np.moveaxis(probability, -1, 0)]
        )
        table["mean_probability"] = 1 - means[0]
        if len(means) > 2:
            table["class"] = 1 + means[1:].argmax(0)
    return table


def grey_value_columns(
    mean: np.ndarray, minimum: np.ndarray, maximum: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of grey values in a table, for each channel; float [number of cells, C] each."""
    channels, columns = mean.shape[1], {}
    for channel in range(channels):
        ending = f"_{channel + 1}" if channels > 1 else ""
        for name, values in (("mean", mean), ("minimum", minimum), ("maximum", maximum)):
            columns[name + ending] = values[:, channel]
    return columns
