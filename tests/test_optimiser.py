from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_train_step import SCHEDULE, STEPS
from unet_jax.errors import InputError
from unet_jax.optimiser import adam, create_optimiser, sgd


def seen(optimiser, steps=STEPS):
    """Momentum and learning rate of each step."""
    params = {"x": jnp.zeros(())}
    state = optimiser.init(params)
    values = []
    for _ in range(steps):
        _, state = optimiser.update({"x": jnp.ones(())}, state, params)
        values.append((state.hyperparams["momentum"], state.hyperparams["learning_rate"]))
    return np.array(values, float).T


def test_momentum_and_learning_rate_warm_up_together():
    momentum, rate = seen(sgd(SCHEDULE, steps=STEPS))
    assert momentum[0] == pytest.approx(0.9)
    assert momentum[25] == pytest.approx(1 - np.sqrt(0.1 * 0.01), rel=1e-4)
    np.testing.assert_allclose(momentum[50:], 0.99, rtol=1e-5)
    nominal = optax.warmup_cosine_decay_schedule(0.0, 0.01, 10, STEPS)
    by_hand = [nominal(i) * 10 ** (1 - min(i / 50, 1)) for i in range(STEPS)]
    np.testing.assert_allclose(rate, by_hand, rtol=1e-5)
    # The rate at which a constant gradient moves the parameters: warm-up, then a cosine to 0.
    speed = rate / (1 - momentum)
    np.testing.assert_allclose(speed[:11], np.linspace(0, 1, 11), atol=1e-4)
    cosine = 0.5 * (1 + np.cos(np.pi * (np.arange(10, 100) - 10) / 90))
    np.testing.assert_allclose(speed[10:], cosine, atol=1e-4)


def test_without_an_end_the_learning_rate_stays_at_its_peak():
    momentum, rate = seen(sgd(SCHEDULE))
    expected, _ = seen(sgd(SCHEDULE, steps=STEPS))
    np.testing.assert_array_equal(momentum, expected)
    speed = rate / (1 - momentum)
    np.testing.assert_allclose(speed, np.minimum(np.arange(STEPS) / 10, 1), atol=1e-4)
    momentum, rate = seen(sgd(replace(SCHEDULE, warmup_steps=0)), steps=3)
    np.testing.assert_allclose(rate / (1 - momentum), 1, atol=1e-4)


def test_constant_momentum_is_plain_sgd():
    optimiser = sgd(replace(SCHEDULE, initial_momentum=0.99), steps=STEPS)
    plain = optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.01, 10, 100), momentum=0.99)
    params = {"x": jnp.ones(3)}
    states = [optimiser.init(params), plain.init(params)]
    for i in range(20):
        gradient = {"x": jnp.sin(jnp.arange(3.0) + i)}
        (a, states[0]), (b, states[1]) = (
            o.update(gradient, s, params) for o, s in zip((optimiser, plain), states, strict=True)
        )
        np.testing.assert_allclose(a["x"], b["x"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("steps", [STEPS, None])
def test_adam_is_the_papers_algorithm_at_the_same_rates(steps):
    """Kingma and Ba 2015, Algorithm 1, written out."""
    optimiser = create_optimiser(replace(SCHEDULE, kind="adam"), steps=steps)
    speed = seen(sgd(replace(SCHEDULE, initial_momentum=0.99), steps=steps))[1]
    params, m, v = {"x": jnp.ones(3)}, 0.0, 0.0
    state = optimiser.init(params)
    for i in range(STEPS):
        gradient = np.sin(np.arange(3.0) + i)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        update, state = optimiser.update({"x": jnp.asarray(gradient)}, state, params)
        rate = float(state.hyperparams["learning_rate"])
        assert rate == pytest.approx(speed[i], rel=1e-5)
        step = (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
        np.testing.assert_allclose(update["x"], -rate * step, rtol=1e-3, atol=1e-9)


def test_adam_refuses_a_warm_up_of_all_steps():
    with pytest.raises(InputError, match="warmup_steps must be below steps = 10, not 10."):
        adam(SCHEDULE, steps=10)
