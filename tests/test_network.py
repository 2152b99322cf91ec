import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_jax.network import UNet, centre_crop, context, init_params, valid_input_sides

# Fig. 1, from the top left to the top right: (kernel height, width, in, out).
CONVOLUTIONS = [
    *[(3, 3, 1, 64), (3, 3, 64, 64)],
    *[(3, 3, 64, 128), (3, 3, 128, 128)],
    *[(3, 3, 128, 256), (3, 3, 256, 256)],
    *[(3, 3, 256, 512), (3, 3, 512, 512)],
    *[(3, 3, 512, 1024), (3, 3, 1024, 1024)],
    *[(2, 2, 1024, 512), (3, 3, 1024, 512), (3, 3, 512, 512)],
    *[(2, 2, 512, 256), (3, 3, 512, 256), (3, 3, 256, 256)],
    *[(2, 2, 256, 128), (3, 3, 256, 128), (3, 3, 128, 128)],
    *[(2, 2, 128, 64), (3, 3, 128, 64), (3, 3, 64, 64)],
    (1, 1, 64, 2),
]


def shapes(network, tile):
    return jax.eval_shape(network.init_with_output, jax.random.key(0), jnp.zeros(tile))


def test_paper_network_has_the_paper_shapes():
    logits, variables = shapes(UNet(), (1, 572, 572, 1))
    params = variables["params"]
    assert logits.shape == (1, 388, 388, 2)
    assert sum(p.size for p in jax.tree.leaves(params)) == 31_030_658
    assert len(CONVOLUTIONS) == 23
    assert sorted(p["kernel"].shape for p in params.values()) == sorted(CONVOLUTIONS)
    assert all(p["bias"].shape == p["kernel"].shape[-1:] for p in params.values())


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_output_is_smaller_by_the_context_and_each_valid_side_works(depth):
    smallest = valid_input_sides(0, depth)[0]
    network = UNet(width=2, depth=depth, classes=3)
    for side in range(smallest, smallest + 40):
        if side in valid_input_sides(side, depth):
            logits, _ = shapes(network, (2, side, smallest, 4))
            expected = (2, side - 2 * context(depth), smallest - 2 * context(depth), 3)
            assert logits.shape == expected and min(logits.shape) > 0
        else:
            with pytest.raises(ValueError, match="nearest valid ones"):
                shapes(network, (2, side, smallest, 4))


def test_invalid_size_names_the_nearest_valid_ones():
    with pytest.raises(ValueError, match=r"width of 512 pixels; .* 508, 524\."):
        shapes(UNet(), (1, 572, 512, 1))
    with pytest.raises(ValueError, match=r"height of 30 pixels; .* 188\."):
        shapes(UNet(), (1, 30, 572, 1))


def test_context_is_exact():
    """The outputs of one max-pooling cell see that cell and the context around it, all of it."""
    network = UNet(width=2, depth=3)
    grid, side = 4, valid_input_sides(0, 3)[0] + 12
    params = init_params(jax.random.key(3), network, 1)

    def first_cell(image):
        return network.apply({"params": params}, image)[0, :grid, :grid].sum()

    images = jax.random.normal(jax.random.key(1), (30, 1, side, side, 1))
    gradients = jax.jit(jax.vmap(jax.grad(first_cell)))(images)
    seen = np.abs(gradients).sum(0)[0, ..., 0] > 0
    for lines in np.nonzero(seen):
        assert (lines.min(), lines.max()) == (0, grid + 2 * context(3) - 1)


def test_initial_weights_are_he_gaussian():
    """Standard deviation sqrt(2 / N) in each layer, pooled over seeds, not truncated; no bias."""
    # So many channels and classes that no layer needs thousands of seeds.
    network = UNet(width=16, classes=64)
    pooled = [init_params(key, network, 16) for key in jax.random.split(jax.random.key(0), 49)]
    for name in pooled[0]:
        height, width, incoming, _ = pooled[0][name]["kernel"].shape
        # An output pixel of an up-convolution sees one pixel, so that N is its channels.
        nodes = incoming if name.endswith("up") else height * width * incoming
        weights = np.concatenate([params[name]["kernel"].ravel() for params in pooled])
        assert weights.size >= 50_000
        assert weights.std() == pytest.approx(math.sqrt(2 / nodes), rel=0.02), name
        assert abs(weights.mean()) < 0.03 * weights.std()
        # 0.27 % of a Gaussian lie beyond 3 standard deviations; Flax's he_normal stops at 2.3.
        beyond = np.mean(np.abs(weights) > 3 * weights.std())
        assert beyond == pytest.approx(0.0027, abs=0.001), name
        assert not any(params[name]["bias"].any() for params in pooled)


def test_drop_out_only_at_the_end_of_the_contracting_path():
    network = UNet(width=8, depth=3)
    side = valid_input_sides(0, 3)[0]
    image = jax.random.normal(jax.random.key(1), (1, side, side, 1))
    variables = {"params": init_params(jax.random.key(0), network, 1)}

    def outputs(rate, key):
        unet = network.clone(dropout_rate=rate)
        _, state = unet.apply(
            variables,
            image,
            train=True,
            rngs={"dropout": jax.random.key(key)},
            capture_intermediates=True,
        )
        return {k: v["__call__"][0] for k, v in state["intermediates"].items() if k != "__call__"}

    with_drop_out, other_key, without = outputs(0.5, 1), outputs(0.5, 2), outputs(0.0, 1)
    # Level 2 of 3 is dropped after its second convolution, and level 3 too.
    for layer in ("contracting1_conv2", "contracting2_conv2"):
        assert np.array_equal(with_drop_out[layer], without[layer])
    for layer in ("contracting3_conv1", "expanding2_conv1"):
        assert not np.array_equal(with_drop_out[layer], without[layer])
        assert not np.array_equal(with_drop_out[layer], other_key[layer])
    # Half of level 2 is dropped, before both the pooling and the skip.
    dropped = with_drop_out["Dropout_0"] == 0
    assert dropped[without["contracting2_conv2"] > 0].mean() == pytest.approx(0.5, abs=0.05)


def test_prediction_needs_no_key_and_drops_nothing():
    network = UNet(width=4, depth=2)
    variables = {"params": init_params(jax.random.key(0), network, 1)}
    image = jax.random.normal(jax.random.key(1), (1, 20, 20, 1))
    assert np.array_equal(
        network.apply(variables, image), network.clone(dropout_rate=0.0).apply(variables, image)
    )


def test_plain_jitted_and_vmapped_agree(strict):
    network = UNet(width=4, depth=3)
    side = valid_input_sides(0, 3)[0]
    images = jax.random.normal(jax.random.key(1), (3, side, side, 1))
    variables = {"params": init_params(jax.random.key(0), network, 1)}

    def one(image):
        return network.apply(variables, image[None])[0]

    plain = np.stack([one(image) for image in images])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(images), plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.apply(variables, images), plain, rtol=1e-4, atol=1e-5)


def test_centre_crop(strict):
    x = np.arange(7 * 8).reshape(1, 7, 8, 1)
    middle = centre_crop(x, (3, 5))
    assert np.array_equal(middle, x[:, 2:5, 1:6])
    assert np.array_equal(jax.jit(centre_crop, static_argnums=1)(x, (3, 5)), middle)
    stack = np.stack([x, 2 * x])
    found = jax.vmap(lambda one: centre_crop(one, (3, 5)))(stack)
    assert np.array_equal(found, [middle, 2 * middle])


def test_forward_mode_differentiation_is_refused_in_words_of_jax():
    """The convolutions have a gradient of their own, which JAX takes in reverse mode only."""
    network = UNet(width=2, depth=1)
    params = init_params(jax.random.key(0), network, 1)

    def predict(image):
        return network.apply({"params": params}, image)

    image = np.ones((1, 6, 6, 1), np.float32)
    with pytest.raises(TypeError, match=r"can't apply forward-mode .* to a custom_vjp"):
        jax.jvp(predict, [image], [image])
    assert jax.grad(lambda image: predict(image).sum())(image).any()


def test_bfloat16_computes_close_to_float32_and_returns_float32():
    network = UNet(width=4, depth=3)
    side = valid_input_sides(0, 3)[0]
    image = jax.random.normal(jax.random.key(1), (1, side, side, 1))
    variables = {"params": init_params(jax.random.key(0), network, 1)}
    exact = network.apply(variables, image)
    half = network.clone(dtype="bfloat16").apply(variables, image)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()
