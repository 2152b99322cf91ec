"""The paper's experiment on glioblastoma cells (Sect. 4): PhC-C2DH-U373, as `dic_hela.py`.

    unet-jax train --config=phc_u373 --workdir=runs/u373_01
    unet-jax eval --checkpoint=runs/u373_01 --tune
    unet-jax eval --checkpoint=runs/u373_01

and the other way round with --config.data.train_sequence=02 --config.data.test_sequence=01. It has
not been run yet.
"""

from unet_jax.configuration import named_config


def get_config():
    config = named_config("dic_hela")
    config.data.dataset = "PhC-C2DH-U373"
    config.data.scale = 0.5
    config.data.partly_annotated = ("all",)  # Sect. 4: 35 partially annotated images
    return config
