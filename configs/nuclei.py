"""The network `nuclei`, which comes with the package: fluorescent nuclei of many kinds and sizes.

python -m benchmarks.nuclei_images
unet-jax train --config=nuclei --workdir=runs/nuclei
unet-jax eval --checkpoint=runs/nuclei --tune
python -m benchmarks.release runs/nuclei nuclei
"""

from unet_jax.configuration import named_config


def get_config():
    config = named_config("folder")
    config.data.images = "runs/nuclei_images/images"
    config.data.labels = "runs/nuclei_images/masks"
    config.data.mask_rule = "instances"
    config.data.validation_fraction = 0.1
    config.data.test_fraction = 0.05
    # Others' nuclei are larger, smaller, brighter and dimmer than these.
    config.augmentation.zoom_octaves = 1.0
    config.augmentation.contrast_std = 0.3
    config.augmentation.brightness_std = 0.2
    config.train.steps = 15_000
    config.train.validate_every = 2500
    return config
