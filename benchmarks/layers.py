"""The layers of `unet_jax.layers` beside the plain ones, forward and backward.

Sizes are those of the first two levels of a network of width 16, and of 64 on a GPU; all are
compiled with `compiler_options`, the convolution also without.
"""

import flax.linen as nn
import jax
import numpy as np

from benchmarks.side_by_side import alternate, summary
from unet_jax.layers import UpConv2x2, compiler_options, conv3x3, max_pool2x2

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def rows(quick):
    """One row for each layer and formulation."""
    width = 2 if quick else 16 if jax.default_backend() == "cpu" else 64
    side = 20 if quick else 568
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jax.device_put(rng.normal(size=shape).astype(np.float32))

    options = compiler_options()
    cases = {
        "max-pooling": (
            [normal(1, side, side, width)],
            {"ours": (max_pool2x2, options), "plain": (_window_max, options)},
        ),
        "up-convolution": (
            [normal(1, side // 4, side // 4, 4 * width), normal(2, 2, 4 * width, 2 * width)],
            {"ours": (_up, options), "plain": (_transposed, options)},
        ),
        "first convolution": (
            [normal(1, side, side, 1), normal(3, 3, 1, width)],
            {"ours": (conv3x3, options), "plain": (_convolution, options)},
        ),
        "convolution": (
            [normal(1, side // 2, side // 2, 4 * width), normal(3, 3, 4 * width, 2 * width)],
            {
                "ours": (conv3x3, options),
                "plain": (_convolution, options),
                "plain, default options": (_convolution, {}),
            },
        ),
    }
    for layer, (inputs, formulations) in cases.items():
        for direction in ("forward", "forward and backward"):
            contestants = {
                name: _call(f, inputs, options, direction)
                for name, (f, options) in formulations.items()
            }
            seconds = alternate(contestants, rounds=11)
            for name in contestants:
                result = summary(seconds, name, ours="ours")
                yield {"layer": layer, "direction": direction, "formulation": name, **result}


def _call(layer, inputs, options, direction):
    def both(*inputs):
        result, back = jax.vjp(layer, *inputs)
        return back(result)

    compiled = jax.jit(layer if direction == "forward" else both, compiler_options=options)
    return lambda: jax.block_until_ready(compiled(*inputs))


def _window_max(x):
    return nn.max_pool(x, (2, 2), (2, 2))


def _up(x, kernel):
    layer = UpConv2x2(kernel.shape[-1], kernel_init=nn.initializers.zeros)
    bias = np.zeros(kernel.shape[-1], np.float32)
    return layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)


def _transposed(x, kernel):
    return jax.lax.conv_transpose(x, kernel, (2, 2), "VALID", dimension_numbers=_DIMENSIONS)


def _convolution(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_DIMENSIONS)
