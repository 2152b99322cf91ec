"""Labelled pictures that look like electron micrographs of nerve tissue, for users without data.

They resemble the ISBI 2012 stack: pale cells between dark membranes, and organelles as dark as
membranes, so that a threshold on the grey values segments them poorly. Sizes are in pixels; they
and the grey values were set by eye against real slices.
"""

import cmath
import math

import numpy as np
from scipy import ndimage as ndi

from unet_jax.example import Example


def synthetic_examples(
    seed: int, count: int, *, height: int = 512, width: int = 512
) -> list[Example]:
    """Makes `count` examples named `picture 0`, `picture 1`, ...

    Example i depends only on the seed, i and the size, not on `count`. The images are uint8
    [H, W]; the labels are 1 in cells and 0 on membranes.
    """
    examples = []
    for i in range(count):
        picture, instances = synthetic_em((seed, i), height=height, width=width)
        labels = (instances > 0).astype(np.int32)
        examples.append(Example(f"picture {i}", picture, labels, instances))
    return examples


def synthetic_em(
    seed: int | tuple[int, ...], *, height: int = 512, width: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a picture and its cells, always the same for the same seed and size.

    Returns:
      picture: uint8 [H, W], grey values from 0 = black to 255 = white.
      instances: int32 [H, W], 0 = membrane, n = cell n, from 1. The cells are the 4-connected
        components of the pixels that are not membrane.
    """
    rng = np.random.default_rng(seed)
    shape = (height, width)
    territories = _territories(rng, shape)
    borders = ndi.maximum_filter(territories, 2) != ndi.minimum_filter(territories, 2)
    # Where a membrane is cut obliquely (up to 1) it is wide, grey and blurred.
    oblique = np.clip(_smooth_noise(rng, shape, 35) - 1.1, 0, 1)
    half_width = 2 * np.exp(0.2 * _smooth_noise(rng, shape, 20)) + 5 * oblique
    not_membrane = ndi.distance_transform_edt(~borders) > half_width
    pieces, _ = ndi.label(not_membrane)
    specks = np.bincount(pieces.ravel()) < 30
    instances, count = ndi.label(not_membrane & ~specks[pieces])
    depth = ndi.distance_transform_edt(instances)  # distance to the membrane, 0 on it

    texture = 70 * ndi.gaussian_filter(rng.standard_normal(shape), 1.2)
    grey = rng.normal(155, 15, count + 1)[instances]
    grey += rng.uniform(0.5, 1.5, count + 1)[instances] * texture
    _add_vesicles(rng, grey, instances, depth)
    _add_mitochondria(rng, grey, instances, depth)
    membrane_grey = 72 + 18 * _smooth_noise(rng, shape, 15) + 15 * oblique
    grey = np.where(instances > 0, grey, membrane_grey + texture)

    sharp, blurred = ndi.gaussian_filter(grey, 0.8), ndi.gaussian_filter(grey, 2.5)
    grey = sharp + oblique * (blurred - sharp)
    grey += 8 * _smooth_noise(rng, shape, 150)  # uneven illumination
    grey += 40 * ndi.gaussian_filter(rng.standard_normal(shape), 0.7)  # the sensor's noise
    return np.clip(grey, 0, 255).astype(np.uint8), instances


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: int) -> np.ndarray:
    """Noise of about unit variance [H, W] that varies over `scale` pixels."""
    grid = rng.standard_normal([side // scale + 3 for side in shape])
    return ndi.zoom(grid, scale, order=2)[: shape[0], : shape[1]]


def _plane(shape: tuple[int, ...]) -> np.ndarray:
    """The pixels' positions as complex numbers x + iy, which a multiplication turns and scales."""
    y, x = np.indices(shape, np.float32)
    return x + 1j * y


def _territories(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Divides the plane [H, W] among cells: a weighted Voronoi diagram, stretched and bent."""
    plane = _plane(shape)
    plane += 8 * (_smooth_noise(rng, shape, 28) + 1j * _smooth_noise(rng, shape, 28))
    radii = np.clip(rng.lognormal(np.log(14), 0.7, 1 + plane.size // 1900), 8, 55)
    nearest = np.full(shape, np.inf, np.float32)
    territories = np.zeros(shape, np.int32)
    # The large cells come first, so that the small ones fill the gaps between them.
    for number, radius in enumerate(np.sort(radii)[::-1]):
        gaps = np.flatnonzero(nearest > 1.2)
        if not gaps.size:
            break
        offset = plane - plane.flat[rng.choice(gaps)]
        offset *= cmath.rect(1 / radius, rng.uniform(0, np.pi))
        stretch = math.exp(rng.uniform(0, 0.5))
        distance = (offset.real / stretch) ** 2 + (offset.imag * stretch) ** 2
        territories[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    return territories


def _add_vesicles(
    rng: np.random.Generator, grey: np.ndarray, instances: np.ndarray, depth: np.ndarray
) -> None:
    """Darkens `grey` with rings (vesicles) and dots, many in some cells and few in others."""

    def distance_to_points(most_per_pixel: float) -> np.ndarray:
        per_pixel = most_per_pixel * rng.random(instances.max() + 1) ** 3
        points = (rng.random(grey.shape) < per_pixel[instances]) & (depth > 5)
        return ndi.distance_transform_edt(~points)

    grey[abs(distance_to_points(0.02) - 3) < 1] -= 70
    grey[distance_to_points(0.005) < 2] -= 60


def _add_mitochondria(
    rng: np.random.Generator, grey: np.ndarray, instances: np.ndarray, depth: np.ndarray
) -> None:
    """Draws dark ellipses with a double outline and stripes, the cristae, into `grey`."""
    plane = _plane(grey.shape)
    bends = 3 * _smooth_noise(rng, grey.shape, 12)
    room = depth > 12
    for _ in range(1 + grey.size // 20000):
        places = np.flatnonzero(room)
        if not places.size:
            break
        centre = rng.choice(places)
        half_width = min(depth.flat[centre], 30) * rng.uniform(0.7, 1)
        half_length = half_width * rng.uniform(1, 2)
        offset = (plane - plane.flat[centre]) * cmath.rect(1, rng.uniform(0, np.pi))
        radius = np.hypot(offset.real / half_length, offset.imag / half_width)
        inside = (1 - radius) * half_width
        body = (inside > 0) & (depth > 3) & (instances == instances.flat[centre])
        texture = 85 + 25 * np.sin(2 * np.pi * (offset.imag + bends) / 7)
        texture[inside < 4.5] = 115
        texture[inside < 2] = 60
        grey[body] = texture[body]
        room &= radius > 2
