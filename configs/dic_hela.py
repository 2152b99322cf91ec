"""The paper's experiment on HeLa cells (Sect. 4): DIC-C2DH-HeLa, one sequence against the other.

    unet-jax train --config=dic_hela --workdir=runs/hela_01
    unet-jax eval --checkpoint=runs/hela_01 --tune
    unet-jax eval --checkpoint=runs/hela_01

and the other way round with --config.data.train_sequence=02 --config.data.test_sequence=01. Each
takes half an hour of one CPU core. SEG of the other sequence: 0.79 and 0.81; with
--averaging=symmetries 0.80 and 0.81.
"""

from ml_collections import ConfigDict

from unet_jax.checked_settings import as_dict
from unet_jax.configuration import named_config
from unet_jax.sources import CellTracking


def get_config():
    config = named_config("em_small")
    config.class_names = ("background", "cell")
    config.model.width = 16

    config.data = ConfigDict(as_dict(CellTracking()))
    config.data.scale = 0.25  # a cell is 100 pixels wide: the network must see beyond it
    config.data.partly_annotated = ("01/067", "02/061", "02/067")  # cells are left out there

    config.augmentation.zoom_octaves = 0.3
    config.train.steps = 5000
    return config
