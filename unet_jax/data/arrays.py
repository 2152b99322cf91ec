"""Examples as the arrays that training takes, on the device if they fit."""

from functools import lru_cache, partial

import jax
import numpy as np

from unet_jax.augmentation import part_corner, reached_side
from unet_jax.device import device_memory_bytes
from unet_jax.example import IGNORED, Example, is_sparse
from unet_jax.normalisation import grey_value_statistics, normalise
from unet_jax.weight_map import reach, weight_map

_PLACES = 1000  # of each image
_PIXELS = "image", "labels", "weights"
_BLOCK = 128  # pixels, side
_compiled = jax.jit(weight_map, static_argnames=("w0", "sigma"))


def weight_maps(
    examples: list[Example], class_weight: np.ndarray, *, w0: float, sigma: float
) -> list[np.ndarray]:
    """Eq. 2 for each example, float32 [H, W], see `weight_map.weight_map`.

    In blocks of one size, so that it is compiled once for images of any sizes, and takes the memory
    of a block.
    """
    around = reach(sigma)
    maps = []
    for example in examples:
        height, width = example.labels.shape
        end = [(0, -height % _BLOCK), (0, -width % _BLOCK)]
        labels = np.pad(example.labels, end)
        instances = np.pad(np.pad(example.instances, end), around)
        weights = np.empty(labels.shape, np.float32)
        for y in range(0, height, _BLOCK):
            for x in range(0, width, _BLOCK):
                block = slice(y, y + _BLOCK), slice(x, x + _BLOCK)
                surroundings = instances[y : y + _BLOCK + 2 * around, x : x + _BLOCK + 2 * around]
                weights[block] = _compiled(
                    labels[block], surroundings, class_weight, w0=w0, sigma=sigma
                )
        maps.append(weights[:height, :width])
    return maps


def training_arrays(
    examples: list[Example], weights: list[np.ndarray]
) -> dict[str, jax.Array | np.ndarray]:
    """All pixels of all examples, with their weight maps [H, W], for `take`.

    Image by image and row by row, so that the memory is that of the pixels, whatever the sizes.

    Returns:
      `image` float32 [P, C], normalised; `labels` int32 and `weights` float32 [P]: NumPy arrays if
      all would take more than half of the device's memory. NumPy arrays in any case: `size` int32
      [N, 2]; `first` int64 [N], the number of each image's first pixel; of sparsely annotated
      examples also `places` int32 [N, 1000, 2], annotated pixels at which tiles are taken, so that
      none is without.
    """
    images = [e.image.reshape(*e.labels.shape, -1) for e in examples]
    sizes = np.array([e.labels.shape for e in examples], np.int32)
    ends = np.cumsum([e.labels.size for e in examples])
    arrays = {"size": sizes, "first": np.concatenate([[0], ends[:-1]])}
    if is_sparse(examples):
        annotated = [np.argwhere(e.labels != IGNORED).astype(np.int32) for e in examples]
        arrays["places"] = np.stack(
            [np.random.default_rng(0).choice(pixels, _PLACES) for pixels in annotated]
        )
    pixels = {
        "image": np.empty((ends[-1], images[0].shape[-1]), np.float32),
        "labels": np.concatenate([e.labels.ravel() for e in examples]),
        "weights": np.concatenate([w.ravel() for w in weights]),
    }
    for image, first, end in zip(images, arrays["first"], ends, strict=True):
        normalised = normalise(image, *grey_value_statistics(image))
        pixels["image"][first:end] = normalised.reshape(end - first, -1)
    fits = sum(a.nbytes for a in pixels.values()) <= device_memory_bytes() // 2
    # JAX counts pixels in 32 bits.
    return arrays | (jax.device_put(pixels) if fits and ends[-1] < 2**31 else pixels)


def take(
    dataset: dict[str, jax.Array | np.ndarray],
    indices: np.ndarray,
    keys: jax.Array,
    *,
    tile_side: int,
    context: int,
    augmentation: dict[str, float],
) -> dict[str, jax.Array | np.ndarray]:
    """A batch of examples for `augmentation.augment`: of each the part that its tile can reach.

    Args:
      dataset: of `training_arrays`.
      indices: int [B], which examples.
      keys: random keys [B], those that `augment` will be given: they say where a tile lies.
      tile_side: as of `augment`.
      context: as of `augment`.
      augmentation: the other options of `augment`.

    Returns:
      `image` float32 [B, h, w, C]; `labels` int32 and `weights` float32 [B, h, w]; `size`, and
      `places` if there are any, of the whole images. [h, w] is the size of the largest image, its
      pixels at the end those of the edge where an image is smaller. Where a tile reaches less than
      that, [h, w] is what it reaches, and `corner` int32 [B, 2] where in the image that begins.
    """
    largest = dataset["size"].max(0).tolist()
    reached = reached_side(tile_side, augmentation["elastic_pixels"])
    height, width = (min(side, reached) for side in largest)
    batch = {name: dataset[name][indices] for name in ("size", "places") if name in dataset}
    corner = np.zeros((len(indices), 2), np.int32)
    if [height, width] != largest:
        corner = batch["corner"] = _corners(
            keys,
            batch["size"],
            batch.get("places"),
            (height, width),
            tile_side=tile_side,
            context=context,
            shift=augmentation["shift"],
        )
    pixels = {name: dataset[name] for name in _PIXELS}
    first, size = dataset["first"][indices], batch["size"]
    if isinstance(pixels["image"], np.ndarray):
        return batch | _parts(pixels, first, size, np.asarray(corner), height, width)
    return batch | _compiled_parts(pixels, first, size, corner, height, width)


def _parts(pixels, first, size, corner, height, width):
    """[B, height, width] of each of the `pixels`, from `corner` on, up to the image's edge."""
    y = (corner[:, :1] + np.arange(height)).clip(max=size[:, :1] - 1)
    x = (corner[:, 1:] + np.arange(width)).clip(max=size[:, 1:] - 1)
    at = first[:, None, None] + y[:, :, None] * size[:, 1, None, None] + x[:, None, :]
    return {name: array[at] for name, array in pixels.items()}


_compiled_parts = jax.jit(_parts, static_argnames=("height", "width"))


@partial(jax.jit, static_argnames=("part", "tile_side", "context", "shift"))
def _corners(keys, sizes, places, part, **options):
    corner = partial(part_corner, part=part, **options)
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
