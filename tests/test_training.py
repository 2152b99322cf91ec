import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import em
from unet_jax.data.arrays import batch_indices, take, training_arrays
from unet_jax.example import Example
from unet_jax.network import UNet, context
from unet_jax.training import create_optimiser, create_train_state, make_train_step

NETWORK = UNet(width=2, depth=2)
SCHEDULE = dict(
    steps=100,
    peak_learning_rate=0.01,
    warmup_steps=10,
    momentum=0.99,
    initial_momentum=0.9,
    momentum_warmup_steps=50,
)
STILL = dict.fromkeys(em.get_config().augmentation, 0.0)


def a_batch(size=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(size, 40, 50, 1)).astype(np.float32),
        "labels": rng.integers(0, 2, (size, 40, 50)).astype(np.int32),
        "weights": rng.uniform(1, 5, (size, 40, 50)).astype(np.float32),
        "size": np.full((size, 2), [40, 50], np.int32),
    }


def test_one_step_is_loss_gradient_and_update():
    """Without augmentation and drop-out, against the parts put together by hand."""
    network = NETWORK.clone(dropout_rate=0.0)
    optimiser = optax.sgd(0.1, momentum=0.99)
    state = create_train_state(jax.random.key(0), network, optimiser, 1)
    batch = a_batch()
    step = make_train_step(network, optimiser, tile_side=36, augmentation=STILL)
    margin = context(2)
    tile = (slice(None), slice(2, 38), slice(7, 43))
    core = (slice(None), slice(2 + margin, 38 - margin), slice(7 + margin, 43 - margin))

    def loss(params):
        logits = network.apply({"params": params}, batch["image"][tile])
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, batch["labels"][core][..., None], -1)[..., 0]
        return -jnp.mean(batch["weights"][core] * picked)

    value, gradient = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, gradient)
    after, metrics = step(state, batch, jax.random.key(1))
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, expected)
    assert after.step == 1


def test_same_key_same_step_other_key_another():
    optimiser, _ = create_optimiser(**SCHEDULE)
    augmentation = STILL | {"rotation_degrees": 180.0}
    step = make_train_step(NETWORK, optimiser, tile_side=36, augmentation=augmentation)

    def loss(seed):
        state = create_train_state(jax.random.key(0), NETWORK, optimiser, 1)
        return float(step(state, a_batch(), jax.random.key(seed))[1]["loss"])

    assert loss(1) == loss(1) != loss(2)


def test_learning_reduces_the_loss():
    """One picture whose labels are its sign, learnt by heart."""
    network = NETWORK.clone(width=8, dropout_rate=0.0)
    optimiser, _ = create_optimiser(**SCHEDULE | {"peak_learning_rate": 0.0001})
    state = create_train_state(jax.random.key(0), network, optimiser, 1)
    batch = a_batch(1)
    batch["labels"] = (batch["image"][..., 0] > 0).astype(np.int32)
    step = make_train_step(network, optimiser, tile_side=36, augmentation=STILL)
    losses = []
    for i in range(100):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_momentum_and_learning_rate_warm_up_together():
    optimiser, learning_rate = create_optimiser(**SCHEDULE)
    params = {"x": jnp.zeros(())}
    state = optimiser.init(params)
    seen = []
    for _ in range(100):
        _, state = optimiser.update({"x": jnp.ones(())}, state, params)
        seen.append((state.hyperparams["momentum"], state.hyperparams["learning_rate"]))
    momentum, rate = np.array(seen, float).T
    assert momentum[0] == pytest.approx(0.9)
    assert momentum[25] == pytest.approx(1 - np.sqrt(0.1 * 0.01), rel=1e-4)
    np.testing.assert_allclose(momentum[50:], 0.99, rtol=1e-5)
    np.testing.assert_allclose(rate, [learning_rate(i) for i in range(100)], rtol=1e-5)
    # The rate at which a constant gradient moves the parameters: warm-up, then a cosine to 0.
    speed = rate / (1 - momentum)
    np.testing.assert_allclose(speed[:11], np.linspace(0, 1, 11), atol=1e-4)
    cosine = 0.5 * (1 + np.cos(np.pi * (np.arange(10, 100) - 10) / 90))
    np.testing.assert_allclose(speed[10:], cosine, atol=1e-4)


def test_constant_momentum_is_plain_sgd():
    optimiser, _ = create_optimiser(**SCHEDULE | {"initial_momentum": 0.99})
    plain = optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.01, 10, 100), momentum=0.99)
    params = {"x": jnp.ones(3)}
    states = [optimiser.init(params), plain.init(params)]
    for i in range(20):
        gradient = {"x": jnp.sin(jnp.arange(3.0) + i)}
        (a, states[0]), (b, states[1]) = (
            o.update(gradient, s, params) for o, s in zip((optimiser, plain), states, strict=True)
        )
        np.testing.assert_allclose(a["x"], b["x"], rtol=1e-4, atol=1e-9)


def test_every_example_once_in_each_epoch_and_another_order_next():
    def epoch(number, seed=0):
        steps = range(number * 5, number * 5 + 5)
        return np.concatenate([batch_indices(s, 10, 2, seed) for s in steps]).tolist()

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(10))
    assert epoch(0) != epoch(1) and epoch(0) != epoch(0, seed=1) and epoch(0) == epoch(0)
    # A batch may be larger than the data set and may straddle two epochs.
    assert sorted(np.concatenate([batch_indices(s, 2, 3, 0) for s in range(2)])) == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


def test_examples_of_different_sizes_share_one_array(monkeypatch):
    rng = np.random.default_rng(0)

    def example(height, width):
        labels = rng.integers(0, 2, (height, width)).astype(np.int32)
        return Example("x", rng.integers(0, 255, (height, width)).astype(np.uint8), labels, labels)

    examples = [example(20, 30), example(25, 10)]
    weights = [np.ones(e.labels.shape, np.float32) for e in examples]
    arrays = training_arrays(examples, weights)
    assert {k: v.shape for k, v in arrays.items()} == {
        "image": (2, 25, 30, 1),
        "labels": (2, 25, 30),
        "weights": (2, 25, 30),
        "size": (2, 2),
    }
    assert all(isinstance(a, jax.Array) for a in arrays.values())
    assert np.array_equal(arrays["labels"][1, :, :10], examples[1].labels)
    assert abs(arrays["image"][0, :20].mean()) < 0.1

    # What does not fit stays on the host.
    monkeypatch.setattr("unet_jax.data.arrays.device_memory_bytes", lambda: 1000)
    on_host = training_arrays(examples, weights)
    assert all(isinstance(a, np.ndarray) for a in on_host.values())
    for dataset in (arrays, on_host):
        batch = take(dataset, np.array([1, 0, 1]))
        assert batch.keys() == arrays.keys()
        np.testing.assert_array_equal(batch["image"], on_host["image"][[1, 0, 1]])
