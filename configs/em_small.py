"""The experiment of `em.py` for the CPU of a laptop: a small network, and another recipe.

    unet-jax train --config=em_small --workdir=runs/em_small
    unet-jax eval --checkpoint=runs/em_small --averaging=none --averaging=rotations

40 minutes on two CPU cores. Test slices 25 to 29, means of two seeds: pixel error 0.047, Rand error
0.062, warping error 0.0019, V_rand 0.981, V_info 0.982; with the 7 rotations averaged 0.046, 0.073,
0.0017, 0.983 and 0.984.
"""

from unet_jax.configuration import named_config


def get_config():
    config = named_config("em")
    config.model.width = 24
    config.model.depth = 4  # sees 44 pixels around each
    config.model.dropout_rate = 0.0  # a network this small has no features to spare

    config.train.tile_side = 284
    config.train.steps = 12_000
    config.train.validate_every = 500
    # In so few steps Adam learns more than the paper's optimiser, and the average of the last ones
    # is better than each of them.
    config.optimiser.kind = "adam"
    config.optimiser.peak_learning_rate = 1e-3
    config.train.average_over = 0.1
    return config
