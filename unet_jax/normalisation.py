"""Grey value normalisation: one rule for training and prediction, stored with the checkpoint.

For each channel over the whole image, never per tile: subtract the mean and divide by the
standard deviation of the pixels between two percentiles, so that a few hot or dead pixels change
nothing; of all pixels, if those are equal. Nothing is clipped; a pixel too far from all others to
be a grey value is refused.
"""

import numpy as np

#: The percentiles that bound the pixels counted.
PERCENTILES = (1.0, 99.0)


def normalise(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """float32 (image - mean) / std for an image or tile [..., C]; 0 where std is 0.

    In the precision of `std`, which for JAX's arrays is 64 bits only if JAX computes in 64 bits.
    """
    flat = (std == 0).astype(std.dtype)
    scale = (1 - flat) / (std + flat)
    return ((image.astype(std.dtype) - mean) * scale).astype(np.float32)
