"""What a run depends on beside its inputs: the device and the versions of the software."""

import os
from importlib.metadata import version
from platform import python_version

import jax


def memory_bytes() -> int:
    """All of the device's memory, whatever is in use now; on a CPU the machine's."""
    statistics = jax.devices()[0].memory_stats()
    if statistics is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return statistics["bytes_limit"]


def versions() -> dict[str, str]:
    """What a result depends on: the packages' versions, Python's and the device."""
    packages = ("unet-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "numba")
    device = jax.devices()[0]
    # A process may be confined to some of the cores; macOS and Windows do not tell.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {package: version(package) for package in packages} | {
        "python": python_version(),
        "device": f"{device.device_kind}, {cores} CPU cores",
    }
