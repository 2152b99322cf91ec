"""A trained network with all that prediction needs."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.network import UNet
from unet_jax.normalisation import PERCENTILES


@dataclass(frozen=True)
class Model:
    """What `unet_jax.load` returns and `unet_jax.predict_tiled` takes; `Model.of` makes one.

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
    scale: float = 1.0
    percentiles: tuple[float, float] = PERCENTILES
    description: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, network: UNet, params: Any) -> "Model":
        """The model of one network in training; it keeps a copy of the parameters."""
        channels = params["contracting1_conv1"]["kernel"].shape[2]
        return cls(network, jax.tree.map(lambda x: jnp.array(x)[None], params), channels)
