"""Labelled pictures that look like electron micrographs of nerve tissue, for users without data.

They resemble the ISBI 2012 stack: pale cells between dark membranes, and dark organelles that are
no membranes, which a threshold on the grey values cannot tell apart.
"""

import numpy as np
from scipy import ndimage as ndi

from unet_jax.data.example import Example


def synthetic_examples(
    seed: int, count: int, *, height: int = 512, width: int = 512
) -> list[Example]:
    """Makes `count` examples, of which the first ones are the same for every `count`.

    Their images are uint8 [H, W], their labels 1 where a cell is and 0 on membranes.
    """
    examples = []
    for i in range(count):
        picture, instances = _draw(np.random.default_rng([seed, i]), height, width)
        labels = (instances > 0).astype(np.int32)
        examples.append(Example(f"picture {i}", picture, labels, instances))
    return examples


def synthetic_em(
    seed: int, *, height: int = 512, width: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a picture and its cells, the same for the same seed and size.

    Returns:
      picture: uint8 [H, W], grey values.
      instances: int32 [H, W], 0 = membrane, n = cell n of 1, 2, ... Each cell is one 4-connected
        component, and membranes separate the cells.
    """
    return _draw(np.random.default_rng(seed), height, width)


def _draw(rng, height, width):
    shape = (height, width)
    territories = _territories(rng, shape)
    borders = ndi.maximum_filter(territories, 2) != ndi.minimum_filter(territories, 2)
    # Where a membrane is cut obliquely it is wide, grey and blurred.
    oblique = np.clip(_smooth_noise(rng, shape, 40) - 0.6, 0, 1.5)
    half_width = 1.7 * np.exp(0.25 * _smooth_noise(rng, shape, 20)) + 3.5 * oblique
    cells = ndi.distance_transform_edt(~borders) > half_width
    pieces, _ = ndi.label(cells)
    instances, count = ndi.label(cells & (np.bincount(pieces.ravel()) >= 30)[pieces])
    depth = ndi.distance_transform_edt(instances)  # how far inside its cell a pixel is

    grey = rng.normal(145, 12, count + 1)[instances]
    grey += 6 * ndi.gaussian_filter(rng.standard_normal(shape), 2) * 7
    _add_vesicles(rng, grey, instances, depth)
    _add_mitochondria(rng, grey, instances, depth)
    membrane_grey = 60 + 12 * _smooth_noise(rng, shape, 15) + 15 * oblique
    grey = np.where(instances > 0, grey, membrane_grey)

    sharp, blurred = ndi.gaussian_filter(grey, 0.8), ndi.gaussian_filter(grey, 2.5)
    grey = sharp + np.minimum(oblique, 1) * (blurred - sharp)
    grey += 8 * _smooth_noise(rng, shape, 150)  # illumination
    grey += 55 * ndi.gaussian_filter(rng.standard_normal(shape), 0.7)
    return np.clip(grey, 0, 255).astype(np.uint8), instances


def _smooth_noise(rng, shape, scale):
    """Noise of about unit variance [H, W] that varies over `scale` pixels."""
    grid = rng.standard_normal([side // scale + 3 for side in shape])
    return ndi.zoom(grid, scale)[: shape[0], : shape[1]]


def _territories(rng, shape):
    """Divides the plane into a multiplicatively weighted Voronoi diagram of stretched cells."""
    y, x = np.indices(shape, np.float32)
    # Bending the plane curves the borders.
    y += 10 * _smooth_noise(rng, shape, 40) + 2 * _smooth_noise(rng, shape, 10)
    x += 10 * _smooth_noise(rng, shape, 40) + 2 * _smooth_noise(rng, shape, 10)
    radii = np.sort(rng.lognormal(np.log(11), 0.75, 1 + y.size // 1200))
    nearest = np.full(shape, np.inf, np.float32)
    territories = np.zeros(shape, np.int32)
    for number, radius in enumerate(radii[::-1]):
        # The large ones come first, so that the small ones fill the gaps between them.
        gaps = np.flatnonzero(nearest > 1)
        if not gaps.size:
            break
        centre = rng.choice(gaps)
        angle, stretch = rng.uniform(0, np.pi), np.exp(rng.uniform(0, 0.7))
        dy, dx = y - y.flat[centre], x - x.flat[centre]
        along = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * stretch)
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius / stretch)
        distance = along**2 + across**2
        territories[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    return territories


def _add_vesicles(rng, grey, instances, depth):
    """Darkens `grey` by dark rings, and dots, more in some cells than in others."""
    for density, inner, outer, strength in ((0.004, 1.0, 1.8, 900), (0.004, 0, 1, 300)):
        per_pixel = density * rng.exponential(1, instances.max() + 1) ** 2
        points = (rng.random(grey.shape) < per_pixel[instances]) & (depth > 3)
        points = points.astype(float)
        rings = ndi.gaussian_filter(points, outer) - 0.5 * ndi.gaussian_filter(points, inner)
        grey -= strength * rings


def _add_mitochondria(rng, grey, instances, depth):
    """Darkens ellipses of `grey` with a double outline and stripes, the cristae."""
    y, x = np.indices(grey.shape, np.float32)
    bends = 3 * _smooth_noise(rng, grey.shape, 12)
    room = depth > 10
    for _ in range(1 + grey.size // 25000):
        places = np.flatnonzero(room)
        if not places.size:
            return
        centre = rng.choice(places)
        half_width = min(depth.flat[centre], 28) * rng.uniform(0.6, 0.95)
        half_length = half_width * rng.uniform(1, 2)
        angle = rng.uniform(0, np.pi)
        dy, dx = y - y.flat[centre], x - x.flat[centre]
        along = np.cos(angle) * dx + np.sin(angle) * dy
        across = np.cos(angle) * dy - np.sin(angle) * dx
        radius = np.hypot(along / half_length, across / half_width)
        inside = (1 - radius) * half_width
        body = (inside > 0) & (depth > 3) & (instances == instances.flat[centre])
        texture = 85 + 22 * np.sin(2 * np.pi * (across + bends) / 7)
        texture[inside < 4.5] = 110
        texture[inside < 2] = 60
        grey[body] = texture[body]
        room &= radius > 2
