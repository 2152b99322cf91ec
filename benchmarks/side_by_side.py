"""Contestants that take turns, and what is said of them."""

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def alternate(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call; in every round each contestant is called once.

    A call returns when its work is done. The first one, which may compile, is not counted.
    """
    for call in contestants.values():
        call()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            seconds[name].append(timed(call))
    return seconds


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def summary(seconds: dict[str, list[float]], name: str, ours: str) -> dict[str, float]:
    """Median, extremes, and `ours_over_it`: below 1, ours is the faster one."""
    median = float(np.median(seconds[name]))
    return {
        "seconds": rounded(median),
        "fastest": rounded(min(seconds[name])),
        "slowest": rounded(max(seconds[name])),
        "ours_over_it": rounded(float(np.median(seconds[ours])) / median),
    }


def rounded(value: float) -> float:
    """To three digits."""
    return float(f"{value:.3g}")


def matrix_product_peak(dtype: str) -> float:
    """FLOP/s of the best of some large matrix products on the default device."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    times = alternate({"product": lambda: product(a).block_until_ready()}, rounds=10)
    return 2 * side**3 / min(times["product"])
