"""A training step in variants that may suit a GPU better, beside the step as it is, "base".

Each is a patch of `unet_jax` while the step is compiled. `--cases` are FORMAT:BATCH:WIDTH:NAMES as
of `training_step`; the names of variants stand between commas, parts of one joined by +. The variants
of a case take turns.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest.mock import patch

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import alternate, rounded
from benchmarks.training_step import Case, ours, step_flops
from unet_jax import layers, network

# The most wanted first: time may be short.
_GPU_CASES = (
    "bfloat16:1:64:base,nine,nine+eight_back,nine+product,eight+eight_back,pool,bias,not_donated",
    "bfloat16:8:64:base,nine,nine+eight_back,nine+product,eight+eight_back,pool,bias",
    "default:1:64:base,nine",
    "float32:1:64:base",
    "bfloat16:16:64:base",
)
_CPU_CASES = ("float32:1:16:base,pool,bias,not_donated",)
_QUICK_CASES = ("float32:1:4:base,pool+bias",)


def rows(quick, cases=None):
    """One row for each variant of each case."""
    on_gpu = jax.default_backend() != "cpu"
    rounds, repeats = (2, 1) if quick else (20, 10) if on_gpu else (10, 1)
    for text in cases or (_QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES):
        text, _, names = text.rpartition(":")
        case = Case.read(text, quick)
        steps, facts = {}, {}
        with jax.default_matmul_precision(case.precision):
            for name in names.split(","):
                with variant(name):
                    steps[name], facts[name], compiled = ours(case)
                facts[name] |= in_code(compiled.as_text())
            contestants = {name: partial(call, repeats) for name, call in steps.items()}
            seconds = alternate(contestants, rounds, repeats)
        flops = step_flops(case.network, case.side) * case.batch_size
        median = {name: float(np.median(times)) for name, times in seconds.items()}
        for name, spent in median.items():
            yield {
                **case.row(),
                "variant": name,
                "milliseconds": rounded(1e3 * spent),
                "over_first": rounded(spent / next(iter(median.values()))),
                "tflops": rounded(flops / spent / 1e12),
                "loss": steps[name](1),  # all have taken as many steps
                **facts[name],
            }


def in_code(text: str) -> dict[str, int]:
    """What the compiled step consists of."""
    return {
        "kernels": text.count(" fusion(") + text.count("custom_call_target="),
        "relu_in_convolution": text.count('"activation_mode":"kRelu"'),
        "copies": len(re.findall(r" copy(?:-start)?\(", text)),
    }


@contextmanager
def variant(names: str) -> Iterator[None]:
    """Patches the project for a while; parts of `_PATCHES` joined by +, or `base`."""
    with ExitStack() as patches:
        for part in [] if names == "base" else names.split("+"):
            patches.enter_context(patch.object(*_PATCHES[part]))
        yield


def _nine_products(x, kernel):
    """The first layer as one loop over pixels, in float32."""
    if x.shape[-1] > 1:
        return layers._convolution(x, kernel)
    return layers._nine_products(*(a.astype(jnp.float32) for a in (x, kernel))).astype(x.dtype)


def _eight_channels(x, kernel):
    """The first layer with channels of zeros, so that all of a memory access is of one pixel."""
    if x.shape[-1] == 1:
        x, kernel = (_filled(array, axis) for array, axis in ((x, 3), (kernel, 2)))
    return layers._convolution(x, kernel)


_derived_gradient = layers._derived_gradient


def _gradient_of_eight_channels(x, kernel, gradient):
    if x.shape[-1] > 1:
        return _derived_gradient(x, kernel, gradient)
    return jax.vjp(_eight_channels, x, kernel)[1](gradient)


def _gradient_as_product(x, kernel, gradient):
    """The first layer's kernel gradient as one matrix product."""
    if x.shape[-1] > 1:
        return _derived_gradient(x, kernel, gradient)
    height, width = gradient.shape[1:3]
    taps = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    product = jnp.stack(taps).reshape(9, -1) @ gradient.reshape(-1, gradient.shape[-1])
    return jnp.zeros_like(x), product.reshape(kernel.shape)


def _filled(array, axis):
    return jnp.pad(array, [(0, 7 if i == axis else 0) for i in range(4)])


def _pool_by_axes(x):
    """The pooling as a maximum over two axes."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


class _Conv3x3(nn.Module):
    """Whose bias gradient is a matrix product, so that the other gradient is a plain loop."""

    channels: int
    kernel_init: object
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (3, 3, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return _add_bias(layers.conv3x3(x, kernel), bias)


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias.reshape(1, 1, 1, -1)


def _bias_product(_, gradient):
    pixels = gradient.reshape(-1, gradient.shape[-1])
    return gradient, (jnp.ones((8, len(pixels)), pixels.dtype) @ pixels)[0]


_add_bias.defvjp(lambda x, bias: (_add_bias(x, bias), None), _bias_product)


def _jit_without_donation(function, jit=jax.jit, **options):
    """So that the update may be fused into the kernel gradients' transposition."""
    options.pop("donate_argnums", None)
    return jit(function, **options)


_PATCHES = {
    "nine": (layers, "_forward", _nine_products),
    "eight": (layers, "_forward", _eight_channels),
    "eight_back": (layers, "_derived_gradient", _gradient_of_eight_channels),
    "product": (layers, "_derived_gradient", _gradient_as_product),
    "pool": (network, "max_pool2x2", _pool_by_axes),
    "bias": (network, "Conv3x3", _Conv3x3),
    "not_donated": (jax, "jit", _jit_without_donation),
}
