"""The memory of the device that JAX computes on."""

import os

import jax


def memory_bytes() -> int:
    """All of the device's memory, whatever is in use now; on a CPU the machine's."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return statistics["bytes_limit"]
