"""The network `membranes`, which comes with the package: a start for electron micrographs.

    unet-jax train --config=membranes --workdir=runs/membranes
    python -m benchmarks.release runs/membranes membranes

Trained on made-up pictures only: the terms of the real ones restrict how a network trained on
them may be used.
"""

from ml_collections import ConfigDict

from unet_jax.checked_settings import as_dict
from unet_jax.configuration import named_config
from unet_jax.sources import Synthetic


def get_config():
    config = named_config("folder")  # which may start from it
    config.data = ConfigDict(as_dict(Synthetic()))
    config.data.height = config.data.width = 384
    config.data.train = (0, 300)
    config.data.validation = (300, 306)
    config.data.test = (306, 316)
    # Others' membranes are wider, narrower, darker and paler than these.
    config.augmentation.zoom_octaves = 0.5
    config.augmentation.contrast_std = 0.3
    config.augmentation.brightness_std = 0.3
    config.train.steps = 16_000
    config.train.validate_every = 1000
    return config
