"""A trained network with everything that prediction needs."""

import hashlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from unet_jax.network import UNet
from unet_jax.normalisation import PERCENTILES
from unet_jax.run_record import Record, Training


@dataclass(frozen=True)
class Model:
    """What `unet_jax.load` returns and `unet_jax.predict_tiled` takes; `Model.of` makes one.

    Attributes:
      network: the architecture.
      params: its parameters, each with a leading axis: the members of an ensemble, or one network.
      channels: channels of the images it was trained on.
      scale: of the images as the network sees them: 0.5 = half the resolution.
      percentiles: of the grey value normalisation, see `unet_jax.normalisation`.
      record: what the checkpoint says of its run; None for a model that was made in memory.
    """

    network: UNet
    params: Any
    channels: int
    scale: float = 1.0
    percentiles: tuple[float, float] = PERCENTILES
    record: Record | None = None

    @property
    def training(self) -> Training | None:
        """How it was trained, if that is known."""
        return self.record.training if self.record else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, the background first."""
        if self.training:
            return self.training.config.class_names
        return tuple(f"class {label}" for label in range(self.network.classes))

    @property
    def class_colours(self) -> tuple[str, ...]:
        """The colours of the classes in pictures; () = the usual ones."""
        return self.training.config.class_colours if self.training else ()

    def sha256(self) -> str:
        """The digest of the parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    @classmethod
    def of(cls, network: UNet, params: Any) -> "Model":
        """The model of one network in training; it keeps a copy of the parameters."""
        channels = params["contracting1_conv1"]["kernel"].shape[2]
        return cls(network, _as_one_member(params), channels)


@jax.jit
def _as_one_member(params):
    """A copy with the leading axis of an ensemble."""
    return jax.tree.map(lambda x: x[None], params)
