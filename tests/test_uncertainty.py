"""Entropy and spread of several predictions, against those computed from each of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_jax import Model, UNet, predict_tiled, predict_with_uncertainty
from unet_jax.network import init_params

RNG = np.random.default_rng(0)


def a_model(members=1, classes=2, channels=1, **changes):
    network = UNet(width=4, depth=3, classes=classes)
    params = [init_params(jax.random.key(k), network, channels) for k in range(members)]
    for one in params:
        one["classes"]["kernel"] *= 5  # opinions that differ
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    return dataclasses.replace(Model(network, stacked, channels), **changes)


def expected(opinions):
    mean = np.mean(opinions, 0)
    entropy = -(mean * np.log2(mean)).sum(-1)
    return mean, np.stack([entropy, np.sqrt(np.var(opinions, 0).sum(-1) / 2)], -1)


def check(found, opinions, image):
    mean, uncertainty = expected(np.array(opinions, np.float64))
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1][..., 0], uncertainty[..., 0], atol=1e-5)
    np.testing.assert_allclose(found[1][..., 1], uncertainty[..., 1], atol=1e-3)
    assert [array.dtype for array in found] == [np.float32] * 2
    assert found[1].shape == (*image.shape[:2], 2) and uncertainty[..., 1].max() > 0.03


@pytest.mark.parametrize("classes, channels, scale", [(2, 1, 1.0), (3, 2, 1.0), (2, 1, 0.5)])
def test_of_one_network_the_views_are_compared(classes, channels, scale):
    model = a_model(classes=classes, channels=channels, scale=scale)
    image = RNG.normal(size=(70, 300, channels)[: 2 if channels == 1 else 3])
    opinions = []
    for turns in range(4):
        for flip in (1, -1):
            turned = predict_tiled(model, np.rot90(image, turns)[:, ::flip])
            opinions.append(np.rot90(turned[:, ::flip], -turns))
    found = predict_with_uncertainty(model, image)
    check(found, opinions, image)
    if scale == 1:
        np.testing.assert_array_equal(
            found[0], predict_tiled(model, image, averaging="symmetries"), "bit for bit"
        )
    if classes == 2:
        std = np.std([opinion[..., 1] for opinion in opinions], 0)
        np.testing.assert_allclose(found[1][..., 1], std, atol=1e-3)


@pytest.mark.parametrize("averaging", ["none", "rotations"])
def test_the_members_of_an_ensemble_are_compared(averaging):
    model, image = a_model(members=3), RNG.normal(size=(60, 90))
    members = [
        dataclasses.replace(model, params=jax.tree.map(lambda x, k=k: x[k : k + 1], model.params))
        for k in range(3)
    ]
    opinions = [predict_tiled(member, image, averaging=averaging) for member in members]
    found = predict_with_uncertainty(model, image, averaging=averaging)
    check(found, opinions, image)
    np.testing.assert_allclose(
        found[0], predict_tiled(model, image, averaging=averaging), atol=1e-6
    )


def test_where_all_views_are_the_same_nothing_spreads():
    model, image = a_model(), np.zeros((40, 40))
    _, found = predict_with_uncertainty(model, image)
    assert found[..., 1].max() < 1e-3, "nothing in the image depends on how it is turned"


def test_results_may_lie_elsewhere():
    model, image = a_model(), RNG.normal(size=(50, 70))
    arrays = [np.full((50, 70, 2), np.nan, np.float32) for _ in range(3)]
    mean, uncertainty = predict_with_uncertainty(
        model, image, out=arrays[0], uncertainty=arrays[1], scratch=arrays[2]
    )
    assert mean is arrays[0] and uncertainty is arrays[1]
    for found, again in zip(
        (mean, uncertainty), predict_with_uncertainty(model, image), strict=True
    ):
        np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("averaging", ["none", "rotations"])
def test_a_single_opinion_is_refused(averaging):
    with pytest.raises(
        ValueError, match="A single network gives only one prediction: uncertainty needs"
    ):
        predict_with_uncertainty(a_model(), np.zeros((40, 40)), averaging=averaging)
