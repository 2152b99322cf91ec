"""The U-Net of Ronneberger, Fischer and Brox (2015) in JAX and Flax."""

from unet_jax.checkpoint import load
from unet_jax.data.folder import read_images
from unet_jax.errors import InputError
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.model import Model
from unet_jax.network import UNet
from unet_jax.overlap_tile import predict_tiled

__all__ = [
    "InputError",
    "InstanceSettings",
    "Model",
    "UNet",
    "find_cells",
    "load",
    "predict_tiled",
    "read_images",
]
