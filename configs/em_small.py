"""The experiment of `em.py` for the CPU of a laptop: a quarter of the width, smaller tiles.

    python train.py --config=configs/em_small.py --workdir=runs/em_small
    python eval.py --checkpoint=runs/em_small --averaging=none --averaging=rotations

40 minutes on two CPU cores. Test slices 25 to 29: pixel error 0.050, Rand error 0.116, warping
error 0.0022, V_rand 0.977, V_info 0.976; with the 7 rotations averaged 0.048, 0.105, 0.0020, 0.979
and 0.979.
"""

from configs import em


def get_config():
    config = em.get_config()
    config.model.width = 16
    config.train.tile_side = 444
    config.train.steps = 4000
    config.train.validate_every = 250
    return config
