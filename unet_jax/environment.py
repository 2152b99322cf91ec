"""What a run depends on beside its inputs: the device and the software."""

import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from platform import python_version

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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether the device had not enough memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def versions() -> dict[str, str]:
    """What a result depends on: the packages' versions, this code's commit, and the device."""
    packages = ("unet-jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "numba")
    device = jax.devices()[0]
    return {package: version(package) for package in packages} | {
        "python": python_version(),
        "commit": _commit(),
        "device": f"{device.device_kind}, {cpu_cores()} CPU cores",
    }


def _commit() -> str:
    """The commit of the checkout that this code lies in, and whether it was changed since."""
    here = Path(__file__)

    def git(*arguments):
        command = ["git", "-C", str(here.parent), *arguments]
        done = subprocess.run(command, capture_output=True, check=True)
        return done.stdout.decode(errors="replace").strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else it is the checkout of something else
        changed = ", changed since" if git("status", "--porcelain") else ""
        return git("rev-parse", "HEAD") + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
