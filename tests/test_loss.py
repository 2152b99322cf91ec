import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from unet_jax.example import IGNORED
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy

pytestmark = pytest.mark.usefixtures("strict")


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(3, 4, 5, 3)).astype(np.float32) * 5,
        rng.integers(IGNORED, 3, (3, 4, 5)).astype(np.int32),
        rng.uniform(0, 4, (3, 4, 5)).astype(np.float32),
    )


def batch_loss(logits, labels, weights):
    return mean_over_pixels(*jax.vmap(weighted_cross_entropy)(logits, labels, weights))


def test_hand_made_value():
    # p = 1/2 at the first pixel, weight 3; p = 3/4 at the second, weight 1; the third is ignored.
    logits = jnp.array([[[0.0, 0.0], [jnp.log(3.0), 0.0], [9.0, -9.0]]])
    total, pixels = weighted_cross_entropy(
        logits, jnp.array([[1, 0, IGNORED]]), jnp.array([[3.0, 1.0, 5.0]])
    )
    assert total == pytest.approx(3 * np.log(2) + np.log(4 / 3))
    assert pixels == 2


def test_equals_scipy_over_a_batch(batch):
    logits, labels, weights = batch
    counted = labels != IGNORED
    log_p = np.take_along_axis(
        log_softmax(logits.astype(float), -1), np.where(counted, labels, 0)[..., None], -1
    )[..., 0]
    expected = -(weights * log_p)[counted].sum() / counted.sum()
    assert batch_loss(*batch) == pytest.approx(expected, rel=1e-6)
    assert jax.jit(batch_loss)(*batch) == pytest.approx(expected, rel=1e-6)
    parts = [weighted_cross_entropy(*example) for example in zip(*batch, strict=True)]
    assert mean_over_pixels(*jnp.array(parts).T) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_the_weighted_difference_of_probability_and_truth(batch):
    logits, labels, weights = batch
    gradient = jax.grad(batch_loss)(*batch)
    counted = (labels != IGNORED)[..., None]
    truth = np.eye(3)[np.where(labels == IGNORED, 0, labels)]
    probability = np.asarray(jax.nn.softmax(logits))
    expected = weights[..., None] * (probability - truth) * counted / counted.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_all_ignored_is_zero_with_zero_gradient(batch):
    logits, labels, weights = batch
    nothing = np.full_like(labels, IGNORED)
    value, gradient = jax.value_and_grad(batch_loss)(logits, nothing, weights)
    assert value == 0 and not gradient.any()


def test_certain_and_wrong_is_finite():
    logits = jnp.array([[[200.0, -200.0]]])
    value, gradient = jax.value_and_grad(
        lambda x: weighted_cross_entropy(x, jnp.array([[1]]), jnp.ones((1, 1)))[0]
    )(logits)
    assert value == 400 and np.isfinite(gradient).all()
