"""The experiment of `em.py` for the CPU of a laptop: a quarter of the width, smaller tiles."""

from configs import em


def get_config():
    config = em.get_config()
    config.model.width = 16
    config.train.tile_side = 444
    config.train.steps = 4000
    config.train.validate_every = 250
    return config
