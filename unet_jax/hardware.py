"""The memory and the processors that there are."""

import os

import jax
import psutil


def host_memory_bytes() -> int:
    """All of the machine's memory, whatever is in use now."""
    return psutil.virtual_memory().total


def device_memory_bytes() -> int:
    """All of the memory that JAX computes in, whatever is in use now; on a CPU the machine's."""
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit") or host_memory_bytes()


def cpu_cores() -> int:
    """As many as this process may use."""
    # It may be confined to some of them; macOS and Windows do not tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether the device had not enough memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
