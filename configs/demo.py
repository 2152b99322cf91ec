"""A small U-Net on made-up electron micrographs: needs no data and a few minutes of a laptop's CPU.

    unet-jax train --config=demo --workdir=runs/demo
    unet-jax eval --checkpoint=runs/demo

3 minutes on two CPU cores. Held-out pictures: pixel error 0.026, Rand error 0.096; the blurred
grey value has 0.092 and 0.457.
"""

from ml_collections import ConfigDict

from unet_jax.checked_settings import as_dict
from unet_jax.configuration import named_config
from unet_jax.sources import Synthetic


def get_config():
    config = named_config("em")
    config.model.width = 8
    config.model.depth = 4
    config.model.dropout_rate = 0.0  # a network this small has no features to spare

    config.data = ConfigDict(as_dict(Synthetic()))

    config.train.tile_side = 252
    config.train.steps = 4500
    config.optimiser.momentum_warmup_steps = 1000
    config.train.validate_every = 300
    return config
