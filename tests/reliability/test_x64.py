"""`jax_enable_x64`, which other code of a session may have set, changes nothing."""

from functools import partial

import jax
import numpy as np
import pytest

from tests.reliability.conftest import ROOT
from tests.test_augmentation import OFF
from tests.test_checkpoint import FIELDS, a_record, a_state, same_bits
from unet_jax import checkpoint, load, predict_tiled
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.example import Example
from unet_jax.network import UNet, context
from unet_jax.optimiser import OptimiserSettings, sgd
from unet_jax.overlap_tile import AVERAGING
from unet_jax.run.fit import fit
from unet_jax.train_step import create_train_state, make_train_step, tile_keys
from unet_jax.training_images import annotated_images, take
from unet_jax.weight_map import weight_maps

GOLDEN = ROOT / "tests" / "reliability" / "golden" / "0.1.0"


@pytest.fixture
def x64():
    """Switches it on or off."""
    before = jax.config.jax_enable_x64
    yield lambda on: jax.config.update("jax_enable_x64", on)
    jax.config.update("jax_enable_x64", before)


def in_both(x64, compute):
    """The result without and with it, as NumPy arrays of float32, int32 and uint32 alone."""
    results = []
    for on in (False, True):
        x64(on)
        results.append(jax.tree.map(np.asarray, compute()))
        dtypes = {str(x.dtype) for x in jax.tree.leaves(results[-1])}
        assert dtypes <= {"float32", "int32", "uint32"}
    return results


@pytest.mark.parametrize("averaging", AVERAGING)
def test_a_checkpoint_loads_and_predicts_the_same(x64, averaging):
    image = np.load(GOLDEN / "expected.npz")["image"]

    def predict():
        model = load(GOLDEN / "run")
        return model.params, predict_tiled(model, image, averaging=averaging)

    assert same_bits(*in_both(x64, predict))


def test_training_is_the_same(x64):
    """But for what is drawn at random, so the tiles are not deformed and nothing is dropped."""
    picture, cells = synthetic_em(0, height=60, width=60)
    example = Example("", picture, np.minimum(cells, 1).astype(np.int32), cells)
    settings = OptimiserSettings(
        peak_learning_rate=0.3,
        warmup_steps=2,
        momentum=0.9,
        initial_momentum=0.5,
        momentum_warmup_steps=3,
    )

    def train():
        network = UNet(**FIELDS | {"dropout_rate": 0.0})
        optimiser = sgd(settings, steps=9)
        state = create_train_state(jax.random.key(1), network, optimiser, 1)
        train_step = make_train_step(network, optimiser, tile_side=44, augmentation=OFF)
        weights = weight_maps([example], np.ones(2, np.float32))
        images, metrics = annotated_images([example], weights), []
        for step in range(4):
            key = jax.random.fold_in(jax.random.key(2), step)
            batch = take(
                images, np.array([0]), tile_keys(key, 1), OFF, tile_side=44, context=context(2)
            )
            state, values = train_step(state, batch, key)
            assert "learning_rate" in state.opt_state.hyperparams
            metrics.append(values)
        return state, metrics, batch

    without, with_it = in_both(x64, train)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), without, with_it)


@pytest.mark.parametrize("on", [True, False])
def test_what_is_saved_with_it_goes_on_without_it_and_the_reverse(x64, tmp_path, on):
    x64(on)
    saved = a_state(1)
    checkpoint.save(tmp_path, saved, a_record(1))
    x64(not on)
    restored = checkpoint.restore(tmp_path, 1, a_state())
    assert same_bits((restored.params, restored.opt_state), (saved.params, saved.opt_state))
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, saved)


def test_a_run_under_it_is_a_run_like_any(x64, tiny_config, tmp_path):
    tiny_config.train.steps = 4
    x64(True)
    assert fit(tiny_config, tmp_path / "run").status == 0
    assert same_bits(*in_both(x64, lambda: load(tmp_path / "run").params))


def test_what_an_earlier_version_saved_with_it_is_read(x64, tmp_path):
    """The up-convolution was float64 and computed in float32."""
    state = a_state()

    def doubled(tree):
        kept = {name: layer for name, layer in tree.items() if name != "expanding1_up"}
        return kept | {"expanding1_up": jax.tree.map(np.float64, tree["expanding1_up"])}

    checkpoint.save(tmp_path, state.replace(params=doubled(state.params)), a_record(1))
    found, with_it = in_both(x64, lambda: load(tmp_path).params)
    assert same_bits(found, with_it)
    assert same_bits(found, jax.tree.map(lambda x: x[None], state.params))
    restored = checkpoint.restore(tmp_path, 1, state)
    assert same_bits(restored.params, state.params)
