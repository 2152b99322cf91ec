"""From the viewer's layers to the planes that the library takes, or one sentence why not."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from unet_jax.errors import InputError
from unet_jax.grey_values import MAX_GREY_VALUE, are_grey_values
from unet_jax.model import Model

#: Which plane of a layer, by its leading axes.
Index = tuple[int, ...]
#: Pixels of a plane that is worked on as a whole; of larger ones, only what is in view.
MOST_PIXELS = 2**26
# Pixels in view that are predicted at once.
_MOST_IN_VIEW = 2**22


@dataclass(frozen=True)
class Planes:
    """The planes of an image layer, [H, W] or [H, W, C] each.

    Attributes:
      name: of the layer.
      data: [..., H, W], or [..., H, W, C] if it is RGB, in full resolution; it may be lazy.
      is_rgb: whether the last axis holds the channels.
    """

    name: str
    data: Any
    is_rgb: bool

    @classmethod
    def of(cls, layer: Any) -> "Planes":
        """Those of napari's image layer."""
        return cls(layer.name, layer.data[0] if layer.multiscale else layer.data, layer.rgb)

    @property
    def shape(self) -> tuple[int, ...]:
        """Without channels, [..., H, W]."""
        return tuple(self.data.shape[: len(self.data.shape) - self.is_rgb])

    @property
    def are_large(self) -> bool:
        """Whether a plane is too large to be worked on as a whole."""
        return self.shape[-2] * self.shape[-1] > MOST_PIXELS

    def indices(self) -> Iterator[Index]:
        """Of all planes, in order."""
        return product(*map(range, self.shape[:-2]))

    def check(self, model: Model) -> None:
        """Raises InputError if a network cannot take them."""
        if len(self.shape) < 2 or not all(self.shape):
            raise InputError(f"{self.name}: has no planes of pixels.")
        if np.dtype(self.data.dtype).kind not in "biuf":
            raise InputError(f"{self.name}: holds {self.data.dtype}, expected real numbers.")
        own = self.data.shape[-1] if self.is_rgb else 1
        if own != model.channels:
            split = self.is_rgb and model.channels == 1
            raise InputError(
                f"{self.name}: this network takes {model.channels} channel(s), not {own}"
                + ("; Layer > Split RGB makes single ones." if split else ".")
            )
        if self.are_large and model.scale != 1:
            raise InputError(
                f"{self.name}: is too large for a network that sees images at {model.scale:g} "
                "times their resolution; crop it first."
            )

    def title(self, index: Index) -> str:
        """Of a plane, numbered as by the viewer's sliders."""
        return f"{self.name}, plane {', '.join(map(str, index))}" if index else self.name

    def read(self, index: Index, part: tuple[slice, ...] = ()) -> np.ndarray:
        """A plane, or a part of one, in memory; InputError if its pixels cannot be grey values."""
        pixels = np.asarray(self.data[(*index, *part)])
        if not are_grey_values(pixels):
            raise InputError(
                f"{self.title(index)}: holds NaN, infinite or huge pixels, expected numbers up to "
                f"{MAX_GREY_VALUE:g}."
            )
        return pixels

    def named(self, error: ValueError) -> InputError:
        """What the library says of the pixels, with the layer's name."""
        return error if isinstance(error, InputError) else InputError(f"{self.name}: {error}")


def shown_index(viewer: Any, layer: Any) -> Index:
    """Which plane of a layer the viewer shows."""
    planes = Planes.of(layer).shape[:-2]
    at = np.round(np.asarray(layer.world_to_data(viewer.dims.point))[: len(planes)]).astype(int)
    return tuple(int(i) for i in np.clip(at, 0, np.array(planes, int) - 1))


def in_view(layer: Any) -> tuple[slice, slice]:
    """The rows and columns of a layer that the viewer shows; their middle if they are many."""
    height, width = Planes.of(layer).shape[-2:]
    corners = np.asarray(layer.corner_pixels)[:, -2:].astype(float)
    if layer.multiscale:
        corners *= np.asarray(layer.downsample_factors)[layer.data_level][-2:]
    (top, left), (bottom, right) = corners
    if bottom <= top or right <= left:  # in 3-D, or not shown at all
        top, left, bottom, right = 0, 0, height, width
    shrink = min(1.0, (_MOST_IN_VIEW / ((bottom - top) * (right - left))) ** 0.5)
    rows, columns = (
        slice(
            max(0, int((first + last) / 2 - shrink * (last - first) / 2)),
            min(side, int(np.ceil((first + last) / 2 + shrink * (last - first) / 2)) + 1),
        )
        for first, last, side in ((top, bottom, height), (left, right, width))
    )
    return rows, columns
