"""What a result depends on besides its inputs: the software, and the device it ran on."""

import subprocess
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import jax

from unet_jax.hardware import cpu_cores


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
    """The commit of the checkout that contains this code, and whether it was changed since."""
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
