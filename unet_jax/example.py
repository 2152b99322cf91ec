"""The unit of every data set: an image with its labels."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from unet_jax.resizing import resized, scaled_size

#: The label of pixels that are left out of the loss, the class weights and the metrics.
IGNORED = -1
#: With less than this share of annotated pixels, connected ones are strokes and no cells.
SPARSE = 0.5


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

    @property
    def channels(self) -> int:
        """The number of channels of the image."""
        return 1 if self.image.ndim == 2 else self.image.shape[-1]


def sha256(example: Example) -> str:
    """The digest of an example's pixels, labels and cells, with their shapes and dtypes."""
    return _sha256(example.image, example.labels, example.instances)


def image_sha256(image: np.ndarray) -> str:
    """The digest of an image's pixels, shape and dtype, the only way to recognise it again."""
    return _sha256(image)


def _sha256(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def annotated_share(labels: Sequence[np.ndarray]) -> float:
    """The share of pixels that count in int arrays [H, W] of classes or `IGNORED`."""
    counted = sum(int(np.count_nonzero(a != IGNORED)) for a in labels)
    return counted / sum(a.size for a in labels)


def is_sparse(examples: Sequence[Example]) -> bool:
    """Whether only strokes are annotated, and no cells."""
    cells = any(example.instances.any() for example in examples)
    return not cells and annotated_share([example.labels for example in examples]) < SPARSE


def rescaled(example: Example, scale: float) -> Example:
    """The example with `scale` times as many pixels along each axis, 0.5 = half the resolution.

    Grey values are averaged over the pixels that become one; labels and cells are those of the
    nearest pixel.
    """
    if scale == 1:
        return example
    labels, instances = (
        np.asarray(jax.image.resize(array, scaled_size(array.shape, scale), "nearest"))
        for array in (example.labels, example.instances)
    )
    return Example(example.name, resized(example.image, labels.shape), labels, instances)


def separated(example: Example) -> Example:
    """The example with a ridge of background, 2 pixels wide, between touching cells of one class.

    The network labels pixels; without the ridge it could not tell such cells apart (Sect. 3).
    """
    labels, instances = example.labels, example.instances
    ridge = np.zeros(labels.shape, bool)
    before, after = slice(None, -1), slice(1, None)
    for here, there in (((before,), (after,)), ((..., before), (..., after))):
        touching = (labels[here] > 0) & (labels[here] == labels[there])
        touching &= instances[here] != instances[there]
        ridge[here] |= touching
        ridge[there] |= touching
    if not ridge.any():
        return example
    return example._replace(
        labels=np.where(ridge, 0, labels), instances=np.where(ridge, 0, instances)
    )
