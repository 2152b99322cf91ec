"""The layers of Fig. 1 in the form that compiles to the fastest code.

They compute what `flax.linen.max_pool`, `ConvTranspose` and `Conv` do; only the time differs.
`python -m benchmarks layers` measures each beside them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# XLA's CPU backend hands convolutions to a library that is slow at them unless told not to. Where
# an option is unknown, as on an accelerator, XLA does not compile.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


@cache
def compiler_options() -> dict[str, str]:
    """What `jax.jit` is given as `compiler_options` for a function that runs the network."""
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
    except RuntimeError:
        return {}
    return _CPU_OPTIONS


def max_pool2x2(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 pixels: [N, H, W, C] -> [N, H / 2, W / 2, C], H and W even.

    The gradient goes to the largest pixel; equal ones share it.
    """
    # The gradient of XLA's own window reduction is a loop over single pixels on a CPU.
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


class UpConv2x2(nn.Module):
    """The up-convolution: [N, H, W, C] -> [N, 2 H, 2 W, channels].

    Each input pixel gives the 2x2 output pixels at its place, which no other one reaches: one
    matrix product with the kernel, [2, 2, C, channels]. Attributes as those of `flax.linen.Conv`.
    """

    channels: int
    kernel_init: Callable
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        kernel = self.param("kernel", self.kernel_init, (2, 2, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        n, height, width, _ = x.shape
        blocks = jnp.einsum("nhwi,abio->nhawbo", x, kernel)
        return blocks.reshape(n, 2 * height, 2 * width, self.channels) + bias


def conv3x3_of_one_channel(x: jax.Array, kernel: jax.Array, *_, **__) -> jax.Array:
    """The first convolution, not padded: [N, H, W, 1] -> [N, H - 2, W - 2, C], kernel [3, 3, 1, C].

    A sum of nine products compiles to one loop, on a CPU ten times as fast as a convolution that
    has a single channel to add up. Its gradient would not; that is the convolution's. What
    `flax.linen.Conv` gives to `jax.lax.conv_general_dilated` besides is not looked at.
    """
    return _nine_products(x, kernel)


@jax.custom_vjp
def _nine_products(x, kernel):
    height, width = x.shape[1] - 2, x.shape[2] - 2
    taps = [(i, j) for i in range(3) for j in range(3)]
    return sum(x[:, i : i + height, j : j + width] * kernel[i, j] for i, j in taps)


def _convolution(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=dimensions)


_nine_products.defvjp(
    lambda x, kernel: (_nine_products(x, kernel), (x, kernel)),
    lambda inputs, gradient: jax.vjp(_convolution, *inputs)[1](gradient),
)
