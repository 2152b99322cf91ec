"""Examples as the arrays that training takes, on the device if they fit."""

import jax
import numpy as np

from unet_jax.environment import device_memory_bytes
from unet_jax.example import IGNORED, Example, is_sparse
from unet_jax.normalisation import grey_value_statistics, normalise
from unet_jax.weight_map import weight_map

_PLACES = 1000  # of each image
_compiled = jax.jit(weight_map, static_argnames=("w0", "sigma"))


def weight_maps(
    examples: list[Example], class_weight: np.ndarray, *, w0: float, sigma: float
) -> list[np.ndarray]:
    """Eq. 2 for each example, float32 [H, W], see `weight_map.weight_map`."""
    return [
        np.asarray(_compiled(e.labels, e.instances, class_weight, w0=w0, sigma=sigma))
        for e in examples
    ]


def training_arrays(examples: list[Example], weights: list[np.ndarray]) -> dict[str, jax.Array]:
    """All examples as one batch for `augmentation.augment`, with their weight maps [H, W].

    Arrays of different sizes are filled up at their end to the largest, [H, W].

    Returns:
      `image` float32 [N, H, W, C], normalised; `labels` int32 and `weights` float32 [N, H, W];
      `size` int32 [N, 2]; of sparsely annotated examples also `places` int32 [N, 1000, 2],
      annotated pixels at which tiles are taken, so that none is without. NumPy arrays if they would
      take more than half of the device's memory.
    """
    height, width = np.max([e.labels.shape for e in examples], axis=0)

    def filled(array):
        end = [(0, height - array.shape[0]), (0, width - array.shape[1])]
        return np.pad(array, end + [(0, 0)] * (array.ndim - 2))

    images = [e.image.reshape(*e.labels.shape, -1) for e in examples]
    arrays = {
        "image": np.stack([filled(normalise(i, *grey_value_statistics(i))) for i in images]),
        "labels": np.stack([filled(e.labels) for e in examples]),
        "weights": np.stack([filled(w) for w in weights]),
        "size": np.array([e.labels.shape for e in examples], np.int32),
    }
    if is_sparse(examples):
        annotated = [np.argwhere(e.labels != IGNORED).astype(np.int32) for e in examples]
        arrays["places"] = np.stack(
            [np.random.default_rng(0).choice(pixels, _PLACES) for pixels in annotated]
        )
    if sum(a.nbytes for a in arrays.values()) > device_memory_bytes() // 2:
        return arrays
    return jax.device_put(arrays)


def take(dataset: dict[str, jax.Array], indices: np.ndarray) -> dict[str, jax.Array]:
    """The batch of the examples `indices`, int [batch_size], of `training_arrays`."""
    if isinstance(dataset["image"], np.ndarray):
        return {name: array[indices] for name, array in dataset.items()}
    return _take(dataset, indices)


@jax.jit
def _take(dataset, indices):
    return {name: array[indices] for name, array in dataset.items()}


def batch_indices(step: int, examples: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples a step sees, int [batch_size]: in each epoch all of them in random order.

    A pure function of the step, so that a run that goes on sees what it would have seen.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array(
        [
            np.random.default_rng([seed, p // examples]).permutation(examples)[p % examples]
            for p in positions
        ]
    )
