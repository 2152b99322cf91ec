"""From annotated images to the crops that a training step takes.

The images lie on the device; or, where they do not fit, on the host, which cuts the crops of the
next step while the device computes.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unet_jax.augmentation import AugmentationSettings, Crop, part_corner, reached_side
from unet_jax.devices import in_all_processes, own_part, put_everywhere, put_part
from unet_jax.example import IGNORED, Example, is_sparse
from unet_jax.grey_values import grey_value_statistics
from unet_jax.hardware import device_memory_bytes
from unet_jax.normalisation import normalise
from unet_jax.train_step import tile_keys

_PLACES = 1000  # of each image


class Draw(NamedTuple):
    """What chance decides of one step, as a pure function of its number.

    Attributes:
      step: its number, from 1 on.
      indices: int [B], which examples it sees.
      key: the random key of the step.
    """

    step: int
    indices: np.ndarray
    key: jax.Array


@flax.struct.dataclass
class AnnotatedImages:
    """All pixels of all training images, image by image and row by row.

    So the memory is that of the pixels, whatever the sizes of the images. All arrays are on the
    device, or all on the host.

    Attributes:
      image: float32 [P, C], normalised.
      labels: int32 [P].
      weights: float32 [P].
      sizes: int32 [N, 2], height and width of each image.
      first: int32 [N], on the host int64, the number of each image's first pixel.
      places: of sparsely annotated images int32 [N, 1000, 2], annotated pixels at which tiles are
        taken, so that none is without; else None.
      largest: height and width that no image exceeds.
    """

    image: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    weights: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array
    first: np.ndarray | jax.Array
    places: np.ndarray | jax.Array | None
    largest: tuple[int, int] = flax.struct.field(pytree_node=False)

    @property
    def on_device(self) -> bool:
        """Whether `take` can be a part of a compiled function."""
        return isinstance(self.image, jax.Array)


def annotated_images(
    examples: Sequence[Example], weights: Sequence[np.ndarray], mesh: Mesh | None = None
) -> AnnotatedImages:
    """The pixels of the examples, with their weight maps [H, W].

    On the device, or on each one of the mesh; as NumPy arrays if all would take more than half of
    its memory.
    """
    # On the host, where NumPy normalises them in 64 bits.
    images = [np.asarray(e.image).reshape(*e.labels.shape, -1) for e in examples]
    ends = np.cumsum([e.labels.size for e in examples])
    first = np.concatenate([[0], ends[:-1]])
    pixels = np.empty((ends[-1], images[0].shape[-1]), np.float32)
    for image, start, end in zip(images, first, ends, strict=True):
        normalised = normalise(image, *grey_value_statistics(image))
        pixels[start:end] = normalised.reshape(end - start, -1)
    places = None
    if is_sparse(examples):
        annotated = [np.argwhere(e.labels != IGNORED).astype(np.int32) for e in examples]
        places = np.stack([np.random.default_rng(0).choice(at, _PLACES) for at in annotated])
    sizes = np.array([e.labels.shape for e in examples], np.int32)
    height, width = sizes.max(0).tolist()
    on_host = AnnotatedImages(
        pixels,
        np.concatenate([e.labels.ravel() for e in examples]),
        np.concatenate([w.ravel() for w in weights]),
        sizes,
        first,
        places,
        (height, width),
    )
    fits = sum(a.nbytes for a in jax.tree.leaves(on_host)) <= device_memory_bytes() // 2
    # JAX counts pixels in 32 bits.
    if in_all_processes(bool(fits and ends[-1] < 2**31)):
        return put_everywhere(replace(on_host, first=first.astype(np.int32)), mesh)
    return on_host


def batches(
    images: AnnotatedImages,
    draws: Iterable[Draw],
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[Draw, Crop]]:
    """The batch of each draw, cut and sent to the device one step ahead in a thread.

    For images on the host. Arguments as of `take`; each device of the mesh is sent its part.
    """

    def batch(draw):
        own = own_part(len(draw.indices), mesh)
        keys = tile_keys(draw.key, len(draw.indices))[own]
        crop = take(images, draw.indices[own], keys, settings, tile_side=tile_side, context=context)
        return draw, put_part(crop, mesh)

    with ThreadPoolExecutor(1) as background:
        before = None
        for draw in draws:
            ahead = background.submit(batch, draw)
            if before:
                yield before.result()
            before = ahead
        if before:
            yield before.result()


def take(
    images: AnnotatedImages,
    indices: np.ndarray | jax.Array,
    keys: jax.Array,
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
) -> Crop:
    """A batch of crops for `augmentation.augment`: of each image what its tile can reach.

    Args:
      images: see there.
      indices: int [B], which of them.
      keys: random keys [B], those that `augment` will be given: they say where a tile lies.
      settings: as of `augment`.
      tile_side: as of `augment`.
      context: as of `augment`.

    Returns:
      `image` [B, h, w, C] and so on, on the device or, of images on the host, there. [h, w] is the
      size of the largest image, its pixels at the end those of the edge where an image is smaller.
      Where a tile reaches less than that, [h, w] is what it reaches, with a `corner`.
    """
    size, first = images.sizes[indices], images.first[indices]
    places = None if images.places is None else images.places[indices]
    reached = reached_side(tile_side, settings)
    height, width = part = tuple(min(side, reached) for side in images.largest)
    corner = None
    if part != images.largest:
        corner = _corners(
            keys, size, places, settings, part=part, tile_side=tile_side, context=context
        )
    arrays = jnp if images.on_device else np
    begins = arrays.zeros_like(size) if corner is None else arrays.asarray(corner)
    y = (begins[:, :1] + np.arange(height)).clip(max=size[:, :1] - 1)
    x = (begins[:, 1:] + np.arange(width)).clip(max=size[:, 1:] - 1)
    at = first[:, None, None] + y[:, :, None] * size[:, 1, None, None] + x[:, None, :]
    return Crop(images.image[at], images.labels[at], images.weights[at], size, corner, places)


@partial(jax.jit, static_argnames=("settings", "part", "tile_side", "context"))
def _corners(keys, sizes, places, settings, **options):
    def corner(key, size, places):
        return part_corner(key, size, places, settings, **options)

    return jax.vmap(corner)(keys, sizes, places)


def batch_indices(step: int, examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples a step sees, int [batch_size]: in each epoch all of them in random order.

    A pure function of the step, so that a run that goes on sees what it would have seen.
    """
    first, end = step * batch_size, (step + 1) * batch_size
    epochs = range(first // examples, (end - 1) // examples + 1)
    order = [_order(examples, epoch, seed) for epoch in epochs]
    return np.concatenate(order)[first % examples :][:batch_size]


@lru_cache(maxsize=2)
def _order(examples, epoch, seed):
    """Of the examples in an epoch: drawn once for all of its steps."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
