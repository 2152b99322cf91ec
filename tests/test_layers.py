import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unet_jax.layers import UpConv2x2, compiler_options, conv3x3, max_pool2x2, relu

RNG = np.random.default_rng(0)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")

pytestmark = pytest.mark.usefixtures("strict")


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def window_max(x):
    return nn.max_pool(x, (2, 2), (2, 2))


def up_conv(x, kernel):
    layer = UpConv2x2(kernel.shape[-1], kernel_init=nn.initializers.zeros)
    return layer.apply({"params": {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1])}}, x)


def transposed_convolution(x, kernel):
    # XLA slides the mirrored kernel.
    return jax.lax.conv_transpose(
        x, kernel[::-1, ::-1], (2, 2), "VALID", dimension_numbers=DIMENSIONS
    )


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=DIMENSIONS)


PAIRS = pytest.mark.parametrize(
    ("layer", "reference", "inputs"),
    [
        (relu, nn.relu, [np.append(normal(9), [0, -0.0]).astype(np.float32)]),
        (max_pool2x2, window_max, [normal(2, 6, 10, 3)]),
        (max_pool2x2, window_max, [np.round(normal(2, 6, 10, 3))]),
        (up_conv, transposed_convolution, [normal(2, 3, 5, 4), normal(2, 2, 4, 3)]),
        (conv3x3, convolution, [normal(2, 7, 9, 1), normal(3, 3, 1, 5)]),
        (conv3x3, convolution, [normal(2, 7, 9, 3), normal(3, 3, 3, 5)]),
    ],
    ids=[
        "relu",
        "max_pool2x2",
        "max_pool2x2 of equal pixels",
        "UpConv2x2",
        "conv3x3 of one channel",
        "conv3x3",
    ],
)


@PAIRS
def test_layer_and_its_gradient_equal_the_reference(layer, reference, inputs):
    expected, expected_back = jax.vjp(reference, *inputs)
    for transform in (lambda f: f, jax.jit):
        found, back = jax.vjp(transform(layer), *inputs)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        cotangent = normal(*expected.shape)
        for a, b in zip(back(cotangent), expected_back(cotangent), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@PAIRS
def test_vmapped_layer_equals_the_plain_one(layer, reference, inputs):
    x, *kernels = inputs
    one_by_one = jax.vmap(lambda image: layer(image[None], *kernels)[0])(x)
    np.testing.assert_allclose(one_by_one, layer(x, *kernels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["forward over reverse", "reverse over reverse"])
def test_the_gradient_of_the_gradient_is_that_of_flax(channels, mode):
    """The product of the Hessian with a vector, as methods of second order and penalties ask."""
    inputs = normal(2, 7, 9, channels), normal(3, 3, channels, 5)
    vectors = normal(2, 7, 9, channels), normal(3, 3, channels, 5)
    layer = nn.Conv(5, (3, 3), padding="VALID", use_bias=False)

    def hessian_times_vector(convolution):
        gradient = jax.grad(lambda *inputs: jnp.tanh(convolution(*inputs)).sum(), (0, 1))
        if mode == "forward over reverse":
            return jax.jvp(gradient, inputs, vectors)[1]

        def along_the_vectors(*inputs):
            return sum(map(jnp.vdot, gradient(*inputs), vectors))

        return jax.grad(along_the_vectors, (0, 1))(*inputs)

    expected = hessian_times_vector(
        lambda x, kernel: layer.apply({"params": {"kernel": kernel}}, x)
    )
    for transform in (lambda f: f, jax.jit):
        found = hessian_times_vector(transform(conv3x3))
        for a, b in zip(found, expected, strict=True):
            assert abs(b).max() > 1
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_up_convolution_by_hand():
    x = np.array([[[[2.0], [3.0]]]], np.float32)
    kernel = np.array([[1, 10], [100, 1000]], np.float32).reshape(2, 2, 1, 1)
    expected = [[2, 20, 3, 30], [200, 2000, 300, 3000]]
    np.testing.assert_array_equal(up_conv(x, kernel)[0, ..., 0], expected)


def test_compiler_options_change_no_result_beyond_rounding():
    x, kernel = normal(1, 30, 30, 32), normal(3, 3, 32, 16)
    compiled = jax.jit(convolution, compiler_options=compiler_options())
    np.testing.assert_allclose(compiled(x, kernel), convolution(x, kernel), rtol=1e-4, atol=1e-4)


def test_unknown_compiler_options_are_dropped(monkeypatch):
    monkeypatch.setattr("unet_jax.layers._CPU_OPTIONS", {"xla_cpu_no_such_option": "1"})
    compiler_options.cache_clear()
    try:
        assert compiler_options() == {}
    finally:
        compiler_options.cache_clear()
