"""Several devices: each computes its part of every batch, and all hold the same network.

They form a mesh with one axis, `data`, which divides the leading axis of a batch; everything else
lies whole on each device, where XLA adds up loss and gradients. So the result is that of one
device, apart from the order in which numbers are added. None stands for one device without a mesh.
"""

import logging
from typing import TypeVar, cast

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unet_jax.errors import InputError

logger = logging.getLogger("unet_jax")

Tree = TypeVar("Tree")

_AXIS = "data"


def data_mesh(batch_size: int) -> Mesh | None:
    """The devices that share a batch, None for a single one.

    In one process, as many of its devices as divide the batch evenly, or one if the user has chosen
    it with `jax.default_device`. In several processes (`jax.distributed`), all devices of all.

    Raises:
      InputError: the devices of several processes do not divide the batch evenly.
    """
    devices = jax.devices()
    count = len(devices)
    if jax.process_count() > 1:
        if batch_size % count:
            raise InputError(
                f"config.train.batch_size must be a multiple of {count}, the number of devices of "
                f"all {jax.process_count()} processes, not {batch_size}."
            )
    elif jax.config.jax_default_device is not None:  # type: ignore[attr-defined]  # made at run time
        return None
    elif batch_size % count:
        count = max(n for n in range(1, count) if batch_size % n == 0)
        logger.info(
            "Training on %d of %d devices: config.train.batch_size=%d is not a multiple of %d.",
            *(count, len(devices), batch_size, len(devices)),
        )
    # In this order a process's part of a batch is one piece.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices[:count]), _AXIS) if count > 1 else None


def in_all_processes(condition: bool) -> bool:
    """Whether the condition is true in every process; they wait for each other."""
    return condition if jax.process_count() == 1 else bool(process_allgather(condition).all())


def own_part(batch_size: int, mesh: Mesh | None) -> slice:
    """Which examples of a batch the devices of this process take."""
    if mesh is None:
        return slice(None)
    each, here = batch_size // mesh.size, jax.process_index()
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == here]
    return slice(own[0] * each, (own[-1] + 1) * each)


def put_part(batch: Tree, mesh: Mesh | None) -> Tree:
    """A batch divided over the devices; each process gives its `own_part`."""
    return _put(batch, mesh, PartitionSpec(_AXIS))


def put_everywhere(tree: Tree, mesh: Mesh | None) -> Tree:
    """Puts arrays, the same in each process, whole on each device."""
    return _put(tree, mesh, PartitionSpec())


def _put(tree, mesh, spec):
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, spec)

    def put(array):
        return jax.make_array_from_process_local_data(sharding, np.asarray(array))

    return jax.tree.map(put, tree)


def divided(batch: Tree, mesh: Mesh | None) -> Tree:
    """In a compiled function: lets each device compute its part of the batch."""
    if mesh is None:
        return batch
    return jax.lax.with_sharding_constraint(batch, NamedSharding(mesh, PartitionSpec(_AXIS)))


def whole(mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of a compiled function's results that are whole on each device."""
    return None if mesh is None else NamedSharding(mesh, PartitionSpec())


def local(tree: Tree, mesh: Mesh | None) -> Tree:
    """Arrays that are whole on each device, as stored on the first device of this process."""
    if mesh is None:
        return tree
    return cast(Tree, jax.tree.map(lambda array: array.addressable_data(0), tree))
