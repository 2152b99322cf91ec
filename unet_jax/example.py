"""What every data set is made of: an image with its labels."""

from typing import NamedTuple

import numpy as np

#: The label of pixels that are left out of the loss, the class weights and the metrics.
IGNORED = -1


class Example(NamedTuple):
    """One annotated image.

    Attributes:
      name: what a person calls it, e.g. ``slice 22`` or a file's stem.
      image: number [H, W], or [H, W, C] for C > 1 channels, as the microscope wrote it.
      labels: int32 [H, W], the class of each pixel, 0 = background or membrane, 1 = cell, or
        ``IGNORED``.
      instances: int32 [H, W], the cell each pixel belongs to, 0 = none.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
