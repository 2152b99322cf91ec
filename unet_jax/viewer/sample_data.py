"""Images to try the plugin with, without a download."""

import numpy as np

from unet_jax.data.synthetic_em import synthetic_examples


def micrographs() -> list[tuple]:
    """Three made-up electron micrographs, uint8 [3, 512, 512], as napari takes layers."""
    stack = np.stack([example.image for example in synthetic_examples(0, 3)])
    return [(stack, {"name": "micrographs"}, "image")]
