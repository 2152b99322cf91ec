"""The augmentation of the paper (Sect. 3.1): deformation, rotation, shift, mirror, grey values.

Enlarging and shrinking are not in the paper and are off by default.

The tile's coordinates in the image are computed once; image, labels and weights are then sampled
there with one gather each, mirrored outside the image. A strength of 0 switches a part off, and
with all of them off the tile is the middle of the image, bit for bit.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from unet_jax.checked_settings import check, setting


@dataclass(frozen=True)
class AugmentationSettings:
    """How tiles are varied; 0 switches a part off.

    Attributes:
      elastic_pixels: standard deviation of the displacements at the nodes of the 3x3 grid, in
        pixels, see `elastic_displacement`.
      rotation_degrees: the angle is uniform between minus and plus this; 180 allows any angle.
      zoom_octaves: tiles are enlarged or shrunk by a factor of up to 2 to the power of this; 1
        means from half to twice the size.
      shift: 1 moves the tile's centre anywhere in the image, 0 leaves it in the middle; in sparsely
        annotated images, 1 moves it anywhere near the annotated pixel, 0 leaves it there.
      mirror_probability: the probability that a tile is mirrored.
      contrast_std: standard deviation of the factor, around 1, that multiplies the grey values.
      brightness_std: standard deviation of what is added to them; the image's own is about 1.
    """

    elastic_pixels: float = setting(10.0, at_least=0)
    rotation_degrees: float = setting(180.0, at_least=0)
    zoom_octaves: float = setting(0.0, at_least=0, at_most=3)
    shift: float = setting(1.0, at_least=0)
    mirror_probability: float = setting(0.5, at_least=0, at_most=1)
    contrast_std: float = setting(0.1, at_least=0)
    brightness_std: float = setting(0.1, at_least=0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


class Crop(NamedTuple):
    """An image, or the part of one that a tile reaches, with what is to be learnt from it.

    Attributes:
      image: float32 [H, W, C], normalised.
      labels: int32 [H, W], the class of each pixel, or `IGNORED`.
      weights: float32 [H, W], see `weight_map`.
      size: int32 [2], height and width of the whole image: less than [H, W] if the arrays were
        padded at their end, more if they are a part of it.
      corner: int32 [2], the image's pixel at which a part begins; None for a whole image.
      places: for sparsely annotated images, int32 [N, 2], annotated pixels of the image, one of
        which, drawn at random, lies in the network's output; otherwise None.
    """

    image: jax.Array
    labels: jax.Array
    weights: jax.Array
    size: jax.Array
    corner: jax.Array | None = None
    places: jax.Array | None = None


class Tile(NamedTuple):
    """What the network is trained on.

    Attributes:
      image: float32 [tile_side, tile_side, C].
      labels: int32 [tile_side - 2 context, tile_side - 2 context], for the network's output.
      weights: float32, of the same shape as the labels.
    """

    image: jax.Array
    labels: jax.Array
    weights: jax.Array


def augment(
    key: jax.Array,
    crop: Crop,
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
) -> Tile:
    """One augmented training tile from one image.

    Large tiles see much of an image (Sect. 3.1), but a large image need not be given as a whole:
    the part that a tile reaches, see `part_corner`, gives the same tile bit for bit, mirrored only
    at the image's border.

    Args:
      key: random key.
      crop: from one image.
      settings: the strengths.
      tile_side: pixels, side of the network's input.
      context: pixels by which the network's output is smaller on each side.
    """
    geometry_key, grey_key = jax.random.split(key)
    coordinates = tile_coordinates(
        geometry_key, crop.size, crop.places, settings, tile_side=tile_side, context=context
    )
    if crop.corner is not None:
        # Exact in float32: whole pixels.
        coordinates -= crop.corner[:, None, None].astype(jnp.float32)
    output = coordinates[:, context : tile_side - context, context : tile_side - context]
    linear = jax.vmap(lambda channel: sample(channel, coordinates, order=1), -1, -1)
    return Tile(
        image=vary_grey_values(grey_key, linear(crop.image), settings),
        labels=sample(crop.labels, output, order=0),
        # As the labels: a weight belongs to the class of its pixel.
        weights=sample(crop.weights, output, order=0),
    )


def tile_coordinates(
    key: jax.Array,
    size: jax.Array,
    places: jax.Array | None = None,
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
) -> jax.Array:
    """Where in an image of `size` = int32 [2] (height, width) the pixels of a random tile lie.

    Args as for `augment`; no `places` for images that are annotated everywhere.

    Returns:
      float32 [2, tile_side, tile_side], rows and columns in pixels, mirrored into the image without
      repeating its edge.
    """
    elastic_key, rotation_key, shift_key, mirror_key = jax.random.split(key, 4)
    centre = (tile_side - 1) / 2
    pixels = jnp.arange(tile_side, dtype=jnp.float32) - centre
    y, x = elastic_displacement(elastic_key, tile_side, settings.elastic_pixels)
    y, x = pixels[:, None] + y, pixels[None, :] + x

    x = jnp.where(jax.random.bernoulli(mirror_key, settings.mirror_probability), -x, x)
    angle = jnp.deg2rad(
        settings.rotation_degrees * jax.random.uniform(rotation_key, minval=-1.0, maxval=1.0)
    )
    # Not a matrix product, which some accelerators compute in reduced precision.
    y, x = jnp.cos(angle) * y - jnp.sin(angle) * x, jnp.sin(angle) * y + jnp.cos(angle) * x

    if settings.zoom_octaves:
        zoom_key = jax.random.fold_in(rotation_key, 1)
        octaves = jax.random.uniform(zoom_key, minval=-1.0, maxval=1.0) * settings.zoom_octaves
        y, x = y / jnp.exp2(octaves), x / jnp.exp2(octaves)

    origin = _origin(shift_key, size, places, tile_side, context, settings)
    return jnp.stack(
        [mirrored(y + centre + origin[0], size[0]), mirrored(x + centre + origin[1], size[1])]
    )


def _origin(shift_key, size, places, tile_side, context, settings):
    """Where in the image the first row and column of a tile lie that is not turned."""
    # Whole pixels, so that a shift alone does not blur.
    unmoved, room = (size - tile_side) // 2, jnp.float32(size)
    if places is not None:
        place = jax.random.choice(jax.random.fold_in(shift_key, 1), places)
        # So near that it lies within the output at any angle and size.
        output = (tile_side - 2 * context) / 2**settings.zoom_octaves
        unmoved, room = place - tile_side // 2, 2 * int(output / math.sqrt(8))
    anywhere = jax.random.uniform(shift_key, (2,), minval=-0.5, maxval=0.5)
    return jnp.float32(unmoved) + jnp.round(settings.shift * room * anywhere)


def reached_side(tile_side: int, settings: AugmentationSettings) -> int:
    """Pixels, side of the part of an image that a turned, deformed and shrunk tile reaches.

    Displacements are Gaussian; 8 `elastic_pixels` are at least 6 standard deviations, which fewer
    than one in 100 million tiles exceed. Such a tile would see an edge of the part repeated.
    """
    # 3 more for the pixels that are interpolated between.
    farthest = (tile_side - 1) / math.sqrt(2) + 8 * settings.elastic_pixels
    return 2 * (math.ceil(farthest * 2**settings.zoom_octaves) + 3)


def part_corner(
    key: jax.Array,
    size: jax.Array,
    places: jax.Array | None = None,
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    part: tuple[int, int],
    tile_side: int,
    context: int,
) -> jax.Array:
    """Where the part of an image that the tile of `augment` with the same key reaches begins.

    Args:
      key: as for `augment`.
      size: int32 [2], height and width of the image.
      places: as in `Crop`.
      settings: as for `augment`.
      part: height and width of the part: `reached_side`, or the image's where that is less.
      tile_side: as for `augment`.
      context: as for `augment`.

    Returns:
      int32 [2], so that the part lies in the image; 0 along an axis on which it does not fit.
    """
    shift_key = jax.random.split(jax.random.split(key)[0], 4)[2]  # as `augment` derives it
    origin = _origin(shift_key, size, places, tile_side, context, settings)
    centre = origin + (tile_side - 1) / 2
    # Mirrored pixels are no further from the mirrored centre than they were from the centre.
    centre = jnp.floor(mirrored(centre, size)).astype(jnp.int32)
    sides = jnp.array(part)
    return jnp.clip(centre - sides // 2, 0, jnp.maximum(size - sides, 0))


def elastic_displacement(key: jax.Array, tile_side: int, strength: float) -> jax.Array:
    """Smooth deformation: Gaussian displacements on a 3x3 grid, bicubic in between (Sect. 3.1).

    With 10 pixels at the nodes, the standard deviation along each axis is 8.9 pixels over all
    pixels of a tile: from 5.6 between the nodes to 12.8 in the corners, which lie outside of them.

    Args:
      key: random key.
      tile_side: pixels.
      strength: pixels, standard deviation of the displacements at the nodes; the paper's is 10.

    Returns:
      float32 [2, tile_side, tile_side], pixels down and to the right.
    """
    grid = strength * jax.random.normal(key, (2, 3, 3))
    return jax.image.resize(grid, (2, tile_side, tile_side), "cubic")


def mirrored(coordinates: jax.Array, size: jax.Array) -> jax.Array:
    """Coordinates in pixels mirrored into [0, size - 1], without repeating the edge."""
    last = jnp.asarray(size - 1, coordinates.dtype)
    period = jnp.maximum(2 * last, 1)
    coordinates = jnp.mod(coordinates, period)
    return jnp.minimum(jnp.minimum(coordinates, period - coordinates), last)


def sample(array: jax.Array, coordinates: jax.Array, *, order: int) -> jax.Array:
    """[H, W] at float32 [2, h, w] coordinates inside it; order 0 nearest, 1 linear."""
    if order == 1:
        return map_coordinates(array, list(coordinates), order=1, mode="nearest")
    # Not by `map_coordinates`, which makes floats of labels in between.
    y, x = jax.lax.round(coordinates).astype(jnp.int32)
    return jnp.asarray(array)[y.clip(0, array.shape[0] - 1), x.clip(0, array.shape[1] - 1)]


def vary_grey_values(
    key: jax.Array, image: jax.Array, settings: AugmentationSettings = AugmentationSettings()
) -> jax.Array:
    """A normalised image [H, W, C] times a random factor, plus a random offset."""
    contrast_key, brightness_key = jax.random.split(key)
    factor = 1 + settings.contrast_std * jax.random.normal(contrast_key)
    return image * factor + settings.brightness_std * jax.random.normal(brightness_key)
