import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.reliability.conftest import ROOT
from tests.test_augmentation import OFF
from unet_jax.augmentation import AugmentationSettings, Crop
from unet_jax.network import UNet, context, contracting_path
from unet_jax.optimiser import OptimiserSettings, sgd
from unet_jax.train_step import create_train_state, make_train_step

NETWORK = UNet(width=2, depth=2)
SCHEDULE = OptimiserSettings(
    peak_learning_rate=0.01,
    warmup_steps=10,
    momentum=0.99,
    initial_momentum=0.9,
    momentum_warmup_steps=50,
)
STEPS = 100


def a_batch(size=2):
    rng = np.random.default_rng(0)
    return Crop(
        image=rng.normal(size=(size, 40, 50, 1)).astype(np.float32),
        labels=rng.integers(0, 2, (size, 40, 50)).astype(np.int32),
        weights=rng.uniform(1, 5, (size, 40, 50)).astype(np.float32),
        size=np.full((size, 2), [40, 50], np.int32),
    )


def loss_by_hand(network, batch):
    """Of a step without augmentation and drop-out, as a function of the parameters."""
    margin = context(2)
    tile = (slice(None), slice(2, 38), slice(7, 43))
    core = (slice(None), slice(2 + margin, 38 - margin), slice(7 + margin, 43 - margin))

    def loss(params):
        logits = network.apply({"params": params}, batch.image[tile])
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, batch.labels[core][..., None], -1)[..., 0]
        return -jnp.mean(batch.weights[core] * picked)

    return loss


def norm(gradient):
    return np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))


def test_one_step_is_loss_gradient_and_update():
    """Without augmentation and drop-out, against the parts put together by hand."""
    network = NETWORK.clone(dropout_rate=0.0)
    optimiser = optax.sgd(0.1, momentum=0.99)
    state = create_train_state(jax.random.key(0), network, optimiser, 1)
    batch = a_batch()
    step = make_train_step(network, optimiser, tile_side=36, augmentation=OFF)
    value, gradient = jax.jit(jax.value_and_grad(loss_by_hand(network, batch)))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
    after, metrics = step(state, batch, jax.random.key(1))
    assert set(metrics) == {"loss", "gradient_norm"}, "this optimiser has no rate in its state"
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(norm(gradient), rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, expected)
    assert after.step == 1


def test_same_key_same_step_other_key_another():
    optimiser = sgd(SCHEDULE, steps=STEPS)
    augmentation = AugmentationSettings(**vars(OFF) | {"rotation_degrees": 180.0})
    step = make_train_step(NETWORK, optimiser, tile_side=36, augmentation=augmentation)

    def loss(seed):
        state = create_train_state(jax.random.key(0), NETWORK, optimiser, 1)
        return float(step(state, a_batch(), jax.random.key(seed))[1]["loss"])

    assert loss(1) == loss(1) != loss(2)


def test_learning_reduces_the_loss():
    """One picture whose labels are its sign, learnt by heart."""
    network = NETWORK.clone(width=8, dropout_rate=0.0)
    settings = OptimiserSettings(**vars(SCHEDULE) | {"peak_learning_rate": 0.0001})
    optimiser = sgd(settings, steps=STEPS)
    state = create_train_state(jax.random.key(0), network, optimiser, 1)
    batch = a_batch(1)
    batch = batch._replace(labels=(batch.image[..., 0] > 0).astype(np.int32))
    step = make_train_step(network, optimiser, tile_side=36, augmentation=OFF)
    losses, rates = [], []
    for i in range(STEPS):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
        rates.append(float(state.opt_state.hyperparams["learning_rate"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    # That of each step itself: none in the first one, the highest after the warm-up.
    nominal = optax.warmup_cosine_decay_schedule(0.0, 0.0001, 10, STEPS)
    expected = [nominal(i) * 10 ** (1 - min(i / 50, 1)) for i in range(STEPS)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_the_average_remembers_a_share_of_the_steps():
    optimiser = optax.sgd(0.1)
    state = create_train_state(jax.random.key(0), NETWORK, optimiser, 1, averaged=True)
    without = create_train_state(jax.random.key(0), NETWORK, optimiser, 1)
    step = make_train_step(NETWORK, optimiser, tile_side=36, augmentation=OFF, average_over=0.5)
    expected = np.asarray(state.average["classes"]["kernel"])
    assert without.result is without.params
    for t in range(1, 6):
        state, metrics = step(state, a_batch(), jax.random.key(t))
        without, same = step(without, a_batch(), jax.random.key(t))
        assert metrics["loss"] == same["loss"] and without.average is None
        now = np.asarray(state.params["classes"]["kernel"])
        assert (now == without.params["classes"]["kernel"]).all(), "training is as without it"
        expected = expected + (now - expected) / (1 + 0.5 * t)
        np.testing.assert_allclose(state.result["classes"]["kernel"], expected, rtol=1e-5)
        assert not np.allclose(now, expected, rtol=1e-5)


def test_a_frozen_contracting_path_stays_bit_for_bit_under_any_optimiser():
    """This one moves parameters whose gradient is 0, too."""
    network = NETWORK.clone(dropout_rate=0.0)
    optimiser = optax.adamw(0.01, weight_decay=0.1)
    state = create_train_state(jax.random.key(0), network, optimiser, 1)
    before, batch = jax.tree.map(np.array, state.params), a_batch()
    gradient = jax.jit(jax.grad(loss_by_hand(network, batch)))(state.params)
    step = make_train_step(
        network, optimiser, tile_side=36, augmentation=OFF, freeze_contracting_path=True
    )
    after, metrics = step(state, batch, jax.random.key(1))
    frozen = contracting_path(before)
    assert len(frozen) == 4
    for name, layer in before.items():
        for kind, array in layer.items():
            same = np.asarray(after.params[name][kind]).tobytes() == array.tobytes()
            assert same == (name in frozen), (name, kind)
    trained = {name: layer for name, layer in gradient.items() if name not in frozen}
    assert metrics["gradient_norm"] == pytest.approx(norm(trained), rel=1e-4)
    assert norm(trained) < 0.99 * norm(gradient)


ON_FOUR_DEVICES = """
import contextlib, sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tests.test_train_step import NETWORK, a_batch
from unet_jax.optimiser import OptimiserSettings, sgd
from unet_jax.train_step import create_train_state, make_train_step

def three_steps(place_batch, replicate):
    optimiser = sgd(OptimiserSettings(warmup_steps=1))
    step = make_train_step(NETWORK, optimiser, tile_side=36)
    state = replicate(create_train_state(jax.random.key(0), NETWORK, optimiser, 1))
    batch, losses = place_batch(a_batch(4)), []
    for i in range(3):
        state, metrics = step(state, batch, replicate(jax.random.key(i)))
        losses.append(metrics["loss"])
    return losses, state.params

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType[sys.argv[1]],))
def place(*axes):
    return lambda tree: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))
with jax.set_mesh(mesh):
    found = three_steps(place("data"), place())
assert all(x.is_fully_replicated and len(x.devices()) == 4 for x in jax.tree.leaves(found))
expected = three_steps(lambda batch: batch, lambda tree: tree)
assert all(len(x.devices()) == 1 for x in jax.tree.leaves(expected))
compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
jax.tree.map(compare, *jax.device_get((found, expected)))
moved = create_train_state(jax.random.key(0), NETWORK, sgd(), 1).params["classes"]["bias"]
assert abs(found[1]["classes"]["bias"] - np.asarray(moved)).max() > 1e-3
"""


@pytest.mark.skipif(
    not (hasattr(jax.sharding, "auto_axes") and hasattr(jax, "set_mesh")),
    reason="this version of JAX has no meshes of Explicit axes to be set",
)
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
def test_a_batch_on_four_devices_trains_as_on_one(kind):
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES, kind],
        cwd=ROOT,
        env=os.environ | devices,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
