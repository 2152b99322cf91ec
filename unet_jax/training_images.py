"""From annotated images to the crops that a training step takes.

The images lie on the device; if they do not fit there, on the host, which cuts the crops of the
next step while the device computes; if they do not fit there either, they are read again for each
step, some steps ahead.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from unet_jax.augmentation import AugmentationSettings, Crop, part_corner, reached_side
from unet_jax.devices import in_all_processes, own_part, put_everywhere, put_part
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share, separated
from unet_jax.grey_values import grey_value_statistics
from unet_jax.hardware import device_memory_bytes
from unet_jax.normalisation import normalise
from unet_jax.train_step import tile_keys
from unet_jax.unread import Facts, annotated_share_of
from unet_jax.weight_map import WeightMapSettings, weight_map_part

_PLACES = 1000  # of each image
# Steps whose images are being read, each in a thread.
_READ_AHEAD = 4


class Draw(NamedTuple):
    """What is drawn at random for one step, as a pure function of its number.

    Attributes:
      step: its number, from 1.
      indices: int [B], which examples it sees.
      key: the random key of the step.
    """

    step: int
    indices: np.ndarray
    key: jax.Array


@flax.struct.dataclass
class AnnotatedImages:
    """All pixels of all training images, image by image and row by row.

    So only the pixels take memory, whatever the sizes of the images. The arrays are all on the
    device, or all on the host.

    Attributes:
      image: float32 [P, C], normalised.
      labels: int32 [P].
      weights: float32 [P].
      sizes: int32 [N, 2], height and width of each image.
      first: int32 [N], on the host int64, the number of each image's first pixel.
      places: for sparsely annotated images, int32 [N, 1000, 2], annotated pixels at which tiles are
        taken, so that each tile has one; otherwise None.
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

    On the device, or on each device of the mesh; as NumPy arrays if together they would take more
    than half of its memory.
    """
    # On the host, where NumPy normalises them in 64 bits.
    images = [np.asarray(e.image).reshape(*e.labels.shape, -1) for e in examples]
    ends = np.cumsum([e.labels.size for e in examples])
    first = np.concatenate([[0], ends[:-1]])
    pixels = np.empty((ends[-1], images[0].shape[-1]), np.float32)
    for image, start, end in zip(images, first, ends, strict=True):
        normalised = normalise(image, *grey_value_statistics(image))
        pixels[start:end] = normalised.reshape(end - start, -1)
    sparse = annotated_share([e.labels for e in examples]) < SPARSE
    places = np.stack([_places(e) for e in examples]) if sparse else None
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


def _places(example):
    annotated = example.labels != IGNORED
    places = np.argwhere(annotated if annotated.any() else ~annotated)  # the latter teach nothing
    return np.random.default_rng(0).choice(places.astype(np.int32), _PLACES)


@dataclass(frozen=True)
class UnreadImages:
    """Training images that are read, separated, normalised and weighted again for each step.

    Attributes:
      examples: such as an `Unread`; they are read in several threads at once.
      facts: about each example after `separated`.
      class_weight: float32 [classes], see `class_weights`.
      weight_map: w0 and sigma.
    """

    examples: Sequence[Example]
    facts: Sequence[Facts]
    class_weight: np.ndarray
    weight_map: WeightMapSettings

    @cached_property
    def sizes(self) -> np.ndarray:
        """int32 [N, 2], height and width of each image."""
        return np.array([f.size for f in self.facts], np.int32)

    @cached_property
    def largest(self) -> tuple[int, int]:
        """Height and width that no image exceeds."""
        height, width = self.sizes.max(0).tolist()
        return height, width

    @cached_property
    def are_sparse(self) -> bool:
        """Whether most of the pixels are ignored."""
        return annotated_share_of(self.facts) < SPARSE

    @property
    def on_device(self) -> bool:
        """Always false: they are read on the host."""
        return False

    def read(self, number: int) -> Example:
        """One of them, separated.

        Raises:
          RunFailed: it cannot be read any more, or its size has changed.
        """
        name, size, *_ = self.facts[number]
        try:
            example = self.examples[number]
        except InputError as error:
            raise RunFailed(*error.args) from error
        if example.labels.shape != size:
            raise RunFailed(f"{name}: has changed since the run began; its size was {size}.")
        return separated(example)


def batches(
    images: AnnotatedImages | UnreadImages,
    draws: Iterable[Draw],
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
    mesh: Mesh | None = None,
) -> Iterator[tuple[Draw, Crop]]:
    """The batch of each draw, cut and sent to the device one step ahead in a thread.

    For images on the host; each device of the mesh is sent its part. Images that have to be read
    are read some steps ahead, in as many threads. Arguments as for `take`.
    """
    ahead = _READ_AHEAD if isinstance(images, UnreadImages) else 1
    geometry = {"tile_side": tile_side, "context": context}

    def batch(draw):
        own = own_part(len(draw.indices), mesh)
        keys, indices = tile_keys(draw.key, len(draw.indices))[own], draw.indices[own]
        if isinstance(images, UnreadImages):
            crop = _taken(images, indices, keys, settings, **geometry)
        else:
            crop = take(images, indices, keys, settings, **geometry)
        return draw, put_part(crop, mesh)

    with ThreadPoolExecutor(ahead) as background:
        waiting: deque[Future[tuple[Draw, Crop]]] = deque()
        for draw in draws:
            waiting.append(background.submit(batch, draw))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def take(
    images: AnnotatedImages,
    indices: np.ndarray | jax.Array,
    keys: jax.Array,
    settings: AugmentationSettings = AugmentationSettings(),
    *,
    tile_side: int,
    context: int,
) -> Crop:
    """A batch of crops for `augmentation.augment`: the part of each image that its tile can reach.

    Args:
      images: see `AnnotatedImages` and `UnreadImages`.
      indices: int [B], which of them.
      keys: random keys [B], the same as for `augment`: they decide where a tile lies.
      settings: as for `augment`.
      tile_side: as for `augment`.
      context: as for `augment`.

    Returns:
      `image` [B, h, w, C] and so on, on the device, or on the host if the images are there. [h, w]
      is the size of the largest image; smaller images are padded at the end with their edge pixels.
      If a tile reaches less than that, [h, w] is what it reaches, with a `corner`.
    """
    size, first = images.sizes[indices], images.first[indices]
    places = None if images.places is None else images.places[indices]
    geometry = {"tile_side": tile_side, "context": context}
    (height, width), corner = _part(images.largest, size, places, keys, settings, geometry)
    arrays = jnp if images.on_device else np
    begins = arrays.zeros_like(size) if corner is None else arrays.asarray(corner)
    y = (begins[:, :1] + np.arange(height)).clip(max=size[:, :1] - 1)
    x = (begins[:, 1:] + np.arange(width)).clip(max=size[:, 1:] - 1)
    at = first[:, None, None] + y[:, :, None] * size[:, 1, None, None] + x[:, None, :]
    return Crop(images.image[at], images.labels[at], images.weights[at], size, corner, places)


def _taken(images, indices, keys, settings, **geometry):
    """As `take`, of images that are read now."""
    examples = [images.read(i) for i in indices]
    size = images.sizes[indices]
    places = np.stack([_places(e) for e in examples]) if images.are_sparse else None
    (height, width), corner = _part(images.largest, size, places, keys, settings, geometry)
    begins = np.zeros_like(size) if corner is None else np.asarray(corner)
    pixels, labels, weights = [], [], []
    for example, (y, x) in zip(examples, begins, strict=True):
        part = np.s_[y : y + height, x : x + width]
        whole = np.asarray(example.image).reshape(*example.labels.shape, -1)
        image = normalise(whole[part], *grey_value_statistics(whole))
        weight = weight_map_part(example, part, images.class_weight, images.weight_map)
        pixels.append(_filled_up(image, height, width))
        labels.append(_filled_up(example.labels[part], height, width))
        weights.append(_filled_up(weight, height, width))
    # NumPy's arrays, as `take` gives them of images on the host.
    image, label, weight = cast(Any, map(np.stack, (pixels, labels, weights)))
    return Crop(image, label, weight, size, corner, cast(Any, places))


def _filled_up(array, height, width):
    """With more rows and columns, equal to the last ones, where [H, W, ...] is smaller."""
    if array.shape[:2] == (height, width):
        return array
    end = [(0, height - array.shape[0]), (0, width - array.shape[1])]
    return np.pad(array, end + [(0, 0)] * (array.ndim - 2), "edge")


def _part(largest, sizes, places, keys, settings, geometry):
    """What is taken of each image: height and width, and where it begins, None = at the corner."""
    reached = reached_side(geometry["tile_side"], settings)
    part = tuple(min(side, reached) for side in largest)
    if part == largest:
        return part, None
    return part, _corners(keys, sizes, places, settings, part=part, **geometry)


@partial(jax.jit, static_argnames=("settings", "part", "tile_side", "context"))
def _corners(keys, sizes, places, settings, **options):
    def corner(key, size, places):
        return part_corner(key, size, places, settings, **options)

    return jax.vmap(corner)(keys, sizes, places)


def batch_indices(done: int, examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples the step after `done` steps sees, int [batch_size].

    In each epoch all of them, in random order. A pure function of its arguments, so that a resumed
    run sees the same examples as without the stop.
    """
    first, end = done * batch_size, (done + 1) * batch_size
    epochs = range(first // examples, (end - 1) // examples + 1)
    order = [_order(examples, epoch, seed) for epoch in epochs]
    return np.concatenate(order)[first % examples :][:batch_size]


@lru_cache(maxsize=2)
def _order(examples, epoch, seed):
    """Of the examples in an epoch: drawn once for all of its steps."""
    return np.random.default_rng([seed, epoch]).permutation(examples)
