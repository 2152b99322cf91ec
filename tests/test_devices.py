import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from unet_jax import devices
from unet_jax.errors import InputError

# On one device by the user's choice; on all four, with images on them; from there with images on
# the host.
FOUR_AND_ONE = """
import jax, numpy as np
from configs import demo
from unet_jax import train, training_images
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_run
config = demo.get_config()
config.model.update({"dtype": "float32", "width": 2, "depth": 2})
config.data.update({"height": 60, "width": 60, "train": (0, 5)})
config.train.update({"tile_side": 44, "batch_size": 4, "steps": 4})
config.optimiser.warmup_steps = 1
configuration = read_configuration(config)
examples = read_run(configuration.data, 2)[1]["train"]

def trained(state=None):
    losses, states, before = [], [], None
    for progress in train(examples, configuration, state=state):
        assert all(len(x.devices()) == 1 for x in jax.tree.leaves(progress.state))
        losses.append(progress.metrics["loss"])
        states.append(jax.device_get(progress.state))
    assert progress.model().params["classes"]["bias"].shape == (1, 2)
    return losses, states

with jax.default_device(jax.devices()[1]):
    losses, states = trained()
of_four, states_of_four = trained()
training_images.device_memory_bytes = lambda: 1
later, later_states = trained(states_of_four[1])
np.testing.assert_allclose(of_four, losses, rtol=1e-6)
near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
jax.tree.map(near, states_of_four, states)
leaves = zip(*map(jax.tree.leaves, (states_of_four, states)))
assert any((a != b).any() for a, b in leaves)  # it was computed in another way
assert later == of_four[2:]
jax.tree.map(np.testing.assert_array_equal, later_states, states_of_four[2:])
"""


@pytest.mark.slow
def test_four_devices_train_as_one():
    done = subprocess.run(
        [sys.executable, "-c", FOUR_AND_ONE],
        cwd=Path(__file__).parents[1],
        env=os.environ
        | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


class Device:
    def __init__(self, number, process_index=0):
        self.id, self.process_index = number, process_index


@pytest.mark.parametrize(("batch_size", "used"), [(8, 4), (4, 4), (6, 3), (2, 2), (1, 1), (5, 1)])
def test_as_many_devices_share_a_batch_as_divide_it(monkeypatch, caplog, batch_size, used):
    monkeypatch.setattr(jax, "devices", lambda: [Device(i) for i in range(4)])
    caplog.set_level("INFO", "unet_jax")
    mesh = devices.data_mesh(batch_size)
    assert (mesh is None) == (used == 1)
    assert mesh is None or mesh.size == used
    told = (
        f"Training on {used} of 4 devices: config.train.batch_size={batch_size} is not a multiple"
    )
    assert (told in caplog.text) == (used < 4)
    with jax.default_device("cpu"):
        assert devices.data_mesh(batch_size) is None


def test_each_process_takes_its_part_of_a_batch(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [Device(i, i // 2 % 2) for i in (2, 0, 3, 1)])
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = devices.data_mesh(8)
    assert [device.id for device in mesh.devices.flat] == [0, 1, 2, 3]
    for here, part in ((0, slice(0, 4)), (1, slice(4, 8))):
        monkeypatch.setattr(jax, "process_index", lambda here=here: here)
        assert devices.own_part(8, mesh) == part
    assert devices.own_part(8, None) == slice(None)
    with pytest.raises(InputError, match="must be a multiple of 4, .* of all 2 processes, not 6"):
        devices.data_mesh(6)
