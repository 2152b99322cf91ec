"""Missing context (Sect. 2, Fig. 2): the image is mirrored at its border."""

import numpy as np


def mirror_indices(start: int, stop: int, size: int) -> np.ndarray:
    """Where the pixels start ... stop - 1 of a mirrored line of `size` pixels come from, int [n].

    The edge pixel is not repeated: 2 1 0 1 2 for start = -2.
    """
    period = max(2 * (size - 1), 1)
    indices = np.arange(start, stop) % period
    return np.minimum(np.minimum(indices, period - indices), size - 1)


def mirrored_part(image, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """The pixels [top ... bottom - 1, left ... right - 1] of an image mirrored at its border.

    Args:
      image: [H, W, C], an array or an object that has its `shape` and gives `image[rows, columns]`
        from a store; only what is needed of it is read.
      top: the first row, which may be negative.
      bottom: the row after the last one, which may exceed the height.
      left: the first column, which may be negative.
      right: the column after the last one, which may exceed the width.

    Returns:
      [bottom - top, right - left, C].
    """
    height, width, _ = image.shape
    rows, columns = mirror_indices(top, bottom, height), mirror_indices(left, right, width)
    first_row, first = rows.min(), columns.min()
    part = image[first_row : rows.max() + 1, first : columns.max() + 1]
    if left < 0 or right > width:
        # One by one, which is slow, only those beyond the image.
        start, end = np.clip((0, width), left, right)
        before, after = columns[: start - left] - first, columns[end - left :] - first
        inside = part[:, start - first : end - first]
        part = np.concatenate([part.take(before, 1), inside, part.take(after, 1)], axis=1)
    if top < 0 or bottom > height:
        part = part.take(rows - first_row, axis=0)
    return part
