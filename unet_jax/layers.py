"""The layers of Fig. 1 in the form that compiles to the fastest code.

They compute what `flax.linen.Conv`, `ConvTranspose` and `max_pool` do; only the time differs.
`python -m benchmarks layers` compares each with them.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental import layout

# XLA's CPU backend hands convolutions to a library that is slow at them unless told not to. Where
# an option is unknown, as on an accelerator, XLA does not compile.
_CPU_OPTIONS: dict[str, str | bool] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"
}


@cache
def compiler_options(deterministic: bool = False) -> dict[str, str | bool]:
    """The `compiler_options` that `jax.jit` is given for a function that runs the network.

    Args:
      deterministic: whether a GPU may use only operations that give the same bits each time, rather
        than those that turn out to be fastest when it is compiled. A CPU always does.
    """
    if jax.default_backend() == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
    except RuntimeError:
        return {}
    return _CPU_OPTIONS


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """The larger of x and 0, elementwise; its gradient at 0 is 0."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals, tangents):
    # It reads what came out, so that a GPU computes convolution, bias and ReLU in one kernel and
    # keeps its result only. Not y > 0, which XLA turns back into x > 0. NaN passes.
    (x,), (tangent,) = primals, tangents
    y = relu(x)
    return y, jnp.where(y != 0, tangent, 0)


@jax.custom_jvp
def max_pool2x2(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 pixels: [N, H, W, C] -> [N, H / 2, W / 2, C], H and W even.

    The gradient goes to the largest pixel, or to the first of equal ones, row by row.
    """
    # The gradient of XLA's own window reduction is a loop over single pixels on a CPU.
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


@max_pool2x2.defjvp
def _max_pool2x2_jvp(primals, tangents):
    # One byte a pixel says where the largest is; the gradients of the maxima would keep four.
    (x,), (tangent,) = primals, tangents
    y = max_pool2x2(x)
    places = list(enumerate([(1, 1), (1, 0), (0, 1), (0, 0)]))
    largest = jnp.zeros(y.shape, jnp.int8)
    for number, (i, j) in places:
        largest = jnp.where(x[:, i::2, j::2] == y, jnp.int8(number), largest)
    parts = [jnp.where(largest == number, tangent[:, i::2, j::2], 0) for number, (i, j) in places]
    return y, sum(parts)


class Conv3x3(nn.Module):
    """The unpadded convolution: [N, H, W, C] -> [N, H - 2, W - 2, channels].

    Attributes as in `flax.linen.Conv`.
    """

    channels: int
    kernel_init: Callable
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        shape = (3, 3, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return conv3x3(x, _as_declared(kernel)) + bias.reshape(1, 1, 1, -1)


class UpConv2x2(nn.Module):
    """The up-convolution: [N, H, W, C] -> [N, 2 H, 2 W, channels].

    Each input pixel gives the 2x2 output pixels at its place, which no other one reaches: one
    matrix product with the kernel, [2, 2, C, channels]. Attributes as in `flax.linen.Conv`.
    """

    channels: int
    kernel_init: Callable
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        shape = (2, 2, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        n, height, width, incoming = x.shape
        # A 1x1 convolution: XLA's matrix product rounds otherwise where there are more pixels, so
        # that a tile would not equal the whole image.
        product = _as_declared(kernel).transpose(2, 0, 1, 3).reshape(1, 1, incoming, -1)
        # The bias is added before pixels are rearranged: after it, it would be made an image.
        blocks = _convolution(x, product) + jnp.tile(bias, 4).reshape(1, 1, 1, -1)
        blocks = blocks.reshape(n, height, width, 2, 2, self.channels).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(n, 2 * height, 2 * width, self.channels)


def _as_declared(kernel):
    """With the axes of kernel and gradient in memory as they are declared.

    Else a GPU's own order of them would reach parameters and momentum: the whole update would take
    place in it, and be copied to where they are.
    """
    if not hasattr(layout, "with_layout_constraint"):  # an older JAX
        return kernel
    return layout.with_layout_constraint(kernel, layout.Layout(tuple(range(kernel.ndim))))


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """An unpadded convolution: [N, H, W, C] -> [N, H - 2, W - 2, D], kernel [3, 3, C, D].

    On a CPU its gradient is written out, which makes a whole training step a tenth faster; that
    gradient can be differentiated again in either mode, but `jax.jvp` of the convolution itself
    raises JAX's TypeError.
    """
    return _forward(x, kernel)


def _forward(x, kernel):
    if x.shape[-1] > 1:
        return _convolution(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_nine_products, default=_convolution)


def _convolution(x, kernel, padding="VALID"):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dimensions)


def _nine_products(x, kernel):
    """Of a single channel. They compile to one loop, ten times as fast as a sum over channels."""
    height, width = x.shape[1] - 2, x.shape[2] - 2
    taps = [(i, j) for i in range(3) for j in range(3)]
    return sum(x[:, i : i + height, j : j + width] * kernel[i : i + 1, j : j + 1] for i, j in taps)


def _backward(inputs, gradient):
    return jax.lax.platform_dependent(
        *inputs, gradient, cpu=_two_convolutions, default=_derived_gradient
    )


def _two_convolutions(x, kernel, gradient):
    """The gradients of x and kernel, from operands that XLA need not rearrange once more."""
    x_gradient = _convolution(gradient, kernel[::-1, ::-1].swapaxes(2, 3), [(2, 2), (2, 2)])
    # The batch is what is summed over; the channels of x take its place.
    kernel_gradient = _convolution(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3))
    return x_gradient, kernel_gradient.transpose(1, 2, 0, 3)


def _derived_gradient(x, kernel, gradient):
    return jax.vjp(_convolution, x, kernel)[1](gradient)


conv3x3.defvjp(lambda x, kernel: (_forward(x, kernel), (x, kernel)), _backward)
