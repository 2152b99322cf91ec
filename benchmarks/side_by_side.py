"""Contestants that take turns, and what is said of them."""

import time
from collections.abc import Callable

import jax
import numpy as np


def alternate(
    contestants: dict[str, Callable[[], None]], rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call; in every round each contestant is called once.

    A call returns when its work is done. The first one, which may compile, is not counted. Of a
    call that does its work several times, `repeats`, the seconds are those of once.
    """
    for call in contestants.values():
        call()
    seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            seconds[name].append(timed(call) / repeats)
    return seconds


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def repeated(call: Callable[[], jax.Array], repeats: int) -> Callable[[], None]:
    """A call that makes so many in a row, of which only the last one's result is waited for.

    So what a short call costs the host lies hidden behind the device's work, as it does in use.
    """

    def calls():
        for _ in range(repeats):
            result = call()
        jax.block_until_ready(result)

    return calls


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


def matrix_product_peak(dtype: str, quick: bool = False) -> float:
    """FLOP/s of the best of some large matrix products on the default device."""
    side, repeats = (2048, 1) if jax.default_backend() == "cpu" else (8192, 10)
    side = 256 if quick else side
    # Random: of zeros or ones a GPU makes more products, because they take it less power.
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    call = repeated(lambda: product(a), repeats)
    return 2 * side**3 / min(alternate({"product": call}, 10, repeats)["product"])
