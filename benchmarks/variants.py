"""A training step in variants that may suit a GPU better, beside the step as it is, "base".

Each is a patch of `unet_jax` while the step is compiled. `--cases` are FORMAT:BATCH:WIDTH:NAMES as
of `training_step`; the names of variants stand between commas, parts of one joined by +, and `all`
is all of them together. The variants of a case take turns.
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
from unet_jax import layers, network, train_step
from unet_jax.example import IGNORED

# The most wanted first: time may be short.
_GPU_CASES = (
    "bfloat16:1:64:base,all",
    "bfloat16:8:64:base,all",
    "bfloat16:1:64:base,relu,up_bias,one_hot,not_donated",
    "bfloat16:1:16:base,all",
    "default:1:64:base",
    "default:8:64:base",
    "float32:1:64:base",
    "bfloat16:16:64:base,all",
)
_CPU_CASES = ("float32:1:16:base,relu,up_bias,one_hot,not_donated",)
_QUICK_CASES = ("float32:1:4:base,all",)


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
    """Patches the project for a while; parts of `_PATCHES` joined by +, `all` or `base`."""
    parts = {"base": [], "all": _PATCHES}.get(names, names.split("+"))
    with ExitStack() as patches:
        for part in parts:
            patches.enter_context(patch.object(*_PATCHES[part]))
        yield


@jax.custom_vjp
def _relu(x):
    """With a gradient that reads the output: what came before it need not be kept."""
    return jnp.maximum(x, 0)


# Not y > 0, which XLA turns back into x > 0: then the convolution would have two users.
_relu.defvjp(
    lambda x: (y := jnp.maximum(x, 0), y), lambda y, gradient: (jnp.where(y != 0, gradient, 0),)
)


class _UpConv2x2(nn.Module):
    """The bias before the reshape to six axes, so that it is no image of its own."""

    channels: int
    kernel_init: object
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (2, 2, x.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        n, height, width, incoming = x.shape
        product = kernel.transpose(2, 0, 1, 3).reshape(1, 1, incoming, -1)
        blocks = layers._convolution(x, product) + jnp.tile(bias, 4)
        blocks = blocks.reshape(n, height, width, 2, 2, self.channels).transpose(0, 1, 3, 2, 4, 5)
        return blocks.reshape(n, 2 * height, 2 * width, self.channels)


def _one_hot_cross_entropy(logits, labels, weights):
    """Without a gather, whose gradient is a scatter."""
    counted = labels != IGNORED
    of_class = jnp.arange(logits.shape[-1]) == jnp.where(counted, labels, 0)[..., None]
    entropy = -jnp.sum(jnp.where(of_class, jax.nn.log_softmax(logits), 0), -1)
    return jnp.sum(jnp.where(counted, weights, 0) * entropy), jnp.sum(counted, dtype=logits.dtype)


def _jit_without_donation(function, jit=jax.jit, **options):
    """So that the update may be fused into the kernel gradients' transposition."""
    options.pop("donate_argnums", None)
    return jit(function, **options)


_PATCHES = {
    "relu": (nn, "relu", _relu),
    "up_bias": (network, "UpConv2x2", _UpConv2x2),
    "one_hot": (train_step, "weighted_cross_entropy", _one_hot_cross_entropy),
    "not_donated": (jax, "jit", _jit_without_donation),
}
