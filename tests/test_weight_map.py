import logging
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from scipy import ndimage

from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.example import IGNORED, Example
from unet_jax.weight_map import (
    WeightMapSettings,
    class_weights,
    two_nearest_cells,
    weight_map,
    weight_maps,
)

NO_CLASS_WEIGHT = np.zeros(2, np.float32)

pytestmark = pytest.mark.usefixtures("strict")


def separation_by_brute_force(instances, w0=10.0, sigma=5.0):
    """Eq. 2's second term from one exact distance transform for each cell."""
    cells = np.unique(instances[instances > 0])
    distances = [ndimage.distance_transform_edt(instances != cell) for cell in cells]
    d1, d2 = np.sort(distances, axis=0)[:2]
    return np.where(instances == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0)


def separation(instances, **settings):
    labels = (instances > 0).astype(np.int32)
    return np.asarray(weight_map(labels, instances, NO_CLASS_WEIGHT, WeightMapSettings(**settings)))


def assert_equals_brute_force(instances, **settings):
    expected = separation_by_brute_force(instances, **settings)
    found = separation(instances, **settings)
    matters = expected > 0.01
    assert matters.any()
    np.testing.assert_allclose(found[matters], expected[matters], atol=1e-3)
    np.testing.assert_allclose(found, expected, atol=0.01)


def test_hand_made_value():
    # Cells in columns 0 and 4: d1 + d2 is 1 + 3 and 2 + 2, so exp(-16 / 50) everywhere between.
    instances = np.zeros((3, 5), np.int32)
    instances[:, 0], instances[:, 4] = 1, 2
    weights = weight_map((instances > 0).astype(np.int32), instances, np.float32([2, 0.5]))
    expected = 2 + 10 * np.exp(-16 / 50)
    np.testing.assert_allclose(weights[1], [0.5, expected, expected, expected, 0.5], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force_on_random_cells(seed):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(70, 90)), 3)
    instances = ndimage.label(smooth > 0.03)[0].astype(np.int32)
    assert_equals_brute_force(instances)
    assert_equals_brute_force(rng.permutation(instances.max() + 1).astype(np.int32)[instances])


def test_equals_brute_force_on_synthetic_em_and_with_other_settings():
    _, instances = synthetic_em(1, height=150, width=170)
    assert_equals_brute_force(instances)
    assert_equals_brute_force(instances, w0=50.0, sigma=6.0)


def test_equals_brute_force_on_real_labels(real_data):
    labels = tifffile.imread(real_data / "isbi2012" / "train-labels.tif")[3] > 0
    assert_equals_brute_force(ndimage.label(labels)[0].astype(np.int32))


def test_touching_cells_and_cells_out_of_reach():
    touching = np.repeat(np.int32([[1, 1, 2, 2]]), 4, axis=0)
    d1, d2 = two_nearest_cells(np.pad(touching, 20), reach=20)
    assert not d1.any() and np.array_equal(d2[0], [2, 1, 1, 2])
    assert not separation(touching).any()  # there is no background

    one_cell = np.zeros((5, 60), np.int32)
    one_cell[2, 3] = 7
    assert not separation(one_cell).any()
    far = one_cell.copy()
    far[2, 50] = 9
    assert not separation(far).any()
    assert not separation(np.zeros((4, 4), np.int32)).any()


def test_ignored_pixels_weigh_nothing():
    labels = np.int32([[0, 1, IGNORED]])
    weights = weight_map(labels, np.int32([[0, 1, 0]]), np.float32([2, 0.5]))
    assert np.array_equal(weights, [[2, 0.5, 0]])


def test_plain_jitted_and_vmapped_agree():
    stack = np.stack([synthetic_em(s, height=40, width=50)[1] for s in range(3)])
    labels = (stack > 0).astype(np.int32)
    weigh = partial(weight_map, class_weights=np.float32([2, 0.5]))
    plain = np.stack([weigh(a, b) for a, b in zip(labels, stack, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(weigh))(labels, stack), plain, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(weigh)(jnp.asarray(labels), stack), plain, rtol=1e-5)


def test_images_of_any_sizes_are_weighed_by_one_compilation(caplog):
    """In blocks, which see the cells of their neighbours: bit for bit as the image in one piece."""
    settings = WeightMapSettings(sigma=2.3)  # of no other test
    examples = []
    for height, width in ((1, 1), (40, 127), (128, 128), (129, 300), (257, 50)):
        _, cells = synthetic_em(height, height=height, width=width)
        labels = (cells > 0).astype(np.int32)
        labels[:3, :3] = IGNORED
        examples.append(Example("", cells, labels, cells))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        weights = weight_maps(examples, np.float32([2, 0.5]), settings)
    compiled = [r for r in caplog.messages if re.match(r"Compiling (jit\()?weight_map\b", r)]
    assert len(compiled) == 1
    whole = jax.jit(partial(weight_map, settings=settings))
    for example, found in zip(examples, weights, strict=True):
        expected = whole(example.labels, example.instances, np.float32([2, 0.5]))
        assert found.dtype == np.float32 and np.array_equal(found, expected)


def test_class_weights_balance_the_classes():
    labels = [np.int32([[0, 1, 1, 1]]), np.int32([[1], [IGNORED]])]
    weights = class_weights(labels, 2)
    assert weights.dtype == np.float32
    # 5 pixels count: 1 of class 0, 4 of class 1.
    np.testing.assert_allclose(weights, [5 / 2, 5 / 8])


def test_absent_class_weighs_nothing_with_a_notice(caplog):
    with caplog.at_level(logging.WARNING, "unet_jax"):
        weights = class_weights([np.int32([[0, 2, 2, 2]])], 3)
    np.testing.assert_allclose(weights, [4 / 3, 0, 4 / 9])
    assert "Class 1 does not occur" in caplog.text
    assert not class_weights([np.full((2, 2), IGNORED)], 2).any()
