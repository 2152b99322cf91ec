"""A small U-Net on made-up electron micrographs: needs no data and a few minutes of a laptop's CPU.

    unet-jax train --config=demo --workdir=runs/demo
    unet-jax eval --checkpoint=runs/demo

2 minutes on two CPU cores. Held-out pictures: pixel error 0.025, Rand error 0.068; the blurred
grey value has 0.092 and 0.457.
"""

from ml_collections import ConfigDict

from unet_jax.checked_settings import as_dict
from unet_jax.configuration import named_config
from unet_jax.sources import Synthetic


def get_config():
    config = named_config("em_small")
    config.model.width = 8

    config.data = ConfigDict(as_dict(Synthetic()))

    config.train.steps = 2000
    config.train.validate_every = 200
    return config
