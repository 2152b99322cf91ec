"""A trained network with all that prediction needs."""

from dataclasses import dataclass
from typing import Any

from unet_jax.network import UNet


@dataclass(frozen=True)
class Model:
    """What `unet_jax.load` returns and `unet_jax.predict_tiled` takes.

    Attributes:
      network: the architecture.
      params: its parameters, each with a leading axis: the members of an ensemble, or one network.
      channels: channels of the images it was trained on.
      scale: of the images that the network sees: 0.5 = half the resolution.
      percentiles: of the grey value normalisation, see `unet_jax.normalisation`.
      description: the checkpoint's record: `step`, `config`, `class_names`, `versions`, ...
    """

    network: UNet
    params: Any
    channels: int
    scale: float
    percentiles: tuple[float, float]
    description: dict[str, Any]
