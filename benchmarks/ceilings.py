"""What the device can do at most, beside which a step or a tile is to be seen.

Bytes a second on the device and between it and the host; matrix products by format, and how far
they and a convolution of the network are from the exact ones. The first row says what machine this
is, and which packages of `setup.cfg` it lacks.
"""

import os
import re
from importlib.metadata import distributions, requires

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import alternate, matrix_product_peak, repeated, rounded, timed
from benchmarks.training_step import FORMATS
from unet_jax.layers import conv3x3


def rows(quick):
    """One row for each ceiling."""
    device = jax.devices()[0]
    yield {
        "what": device.device_kind,
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "cores": os.cpu_count(),
        "lacks": missing(),
    }

    def moved(what, array, times, seconds):
        speed = rounded(times * array.nbytes / seconds / 1e12)
        return {"what": what, "terabytes_per_second": speed}

    x = jax.random.normal(jax.random.key(0), (2**20 if quick else 2**28,))
    add = jax.jit(lambda x: x + 1)
    seconds = alternate({"x + 1": repeated(lambda: add(x), 10)}, 5, repeats=10)
    yield moved("x + 1", x, 2, min(seconds["x + 1"]))
    host = np.ones(x.shape, x.dtype)
    yield moved("to the device", host, 1, timed(lambda: jax.device_put(host).block_until_ready()))
    yield moved("to the host", x, 1, timed(lambda: np.asarray(x)))

    side, tile = (256, 44) if quick else (4096, 280)
    a, b = jax.random.normal(jax.random.key(1), (2, side, side))
    image = jax.random.normal(jax.random.key(2), (1, tile, tile, 64))
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 64, 64))

    def both(dtype, precision):
        with jax.default_matmul_precision(precision):
            product = a.astype(dtype) @ b.astype(dtype)
            return product, jax.jit(conv3x3)(image.astype(dtype), kernel.astype(dtype))

    exact = both("float32", "highest")
    for name, (dtype, precision) in FORMATS.items():
        errors = map(error, both(dtype, precision), exact)
        with jax.default_matmul_precision(precision):
            tflops = rounded(matrix_product_peak(dtype, quick) / 1e12)
        product_error, convolution_error = errors
        yield {
            "what": name,
            "tflops": tflops,
            "product_error": product_error,
            "convolution_error": convolution_error,
        }


def missing() -> list[str]:
    """What the project, its tests and its benchmarks ask for and is not installed."""
    installed = {d.name.lower().replace("_", "-") for d in distributions() if d.name}
    asked = {re.match(r"[\w.-]+", requirement)[0] for requirement in requires("unet-jax")}
    return sorted(name for name in asked if name.lower().replace("_", "-") not in installed)


def error(found: jax.Array, exact: jax.Array) -> float:
    """The norm of the difference over that of the exact values."""
    return rounded(float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)))
