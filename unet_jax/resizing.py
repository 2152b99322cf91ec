"""Images at another scale."""

import jax
import numpy as np


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width in pixels at another scale, at least 1."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 image [*size, ...] from [H, W, ...]: linear, without aliasing, edges stay edges."""
    image = np.asarray(image, np.float32)
    return np.asarray(jax.image.resize(image, (*size, *image.shape[2:]), "linear"))
