"""The memory and the processors of this machine."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax
import psutil

# Where an accelerator does not tell, as with some of JAX's allocators: that of a small one. A part
# of the machine's would be a guess that may be far too large; prediction goes on with smaller tiles
# where even this is not there.
_UNTOLD_BYTES = 8 * 2**30


@cache
def host_memory_bytes() -> int:
    """The machine's total memory, in use or not, or what a container or a job may use of it."""
    return min(psutil.virtual_memory().total, *_memory_limits(Path("/")))


def _memory_limits(root: Path) -> Iterator[float]:
    """Those that Linux sets to this process and to the groups that it is in, in bytes."""
    yield math.inf
    with contextlib.suppress(OSError, ValueError):  # another system
        for line in (root / "proc/self/cgroup").read_text("utf-8").splitlines():
            _, kinds, group = line.split(":", 2)
            version_1 = "memory" in kinds.split(",")
            if kinds and not version_1:
                continue
            groups = root / ("sys/fs/cgroup/memory" if version_1 else "sys/fs/cgroup")
            name = "memory.limit_in_bytes" if version_1 else "memory.max"
            for folder in (Path(group), *Path(group).parents):
                # In a container the outer part of the path is missing, or "max" is the limit.
                with contextlib.suppress(OSError, ValueError):
                    yield int((groups / folder.relative_to("/") / name).read_text("utf-8"))


@cache
def device_memory_bytes() -> int:
    """The total memory that JAX computes in, in use or not; on a CPU the machine's."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    untold = host_memory_bytes() if jax.default_backend() == "cpu" else _UNTOLD_BYTES
    return statistics.get("bytes_limit") or untold


def fastest_dtype() -> str:
    """The dtype in which the network is fastest: bfloat16 on accelerators with it, else float32."""
    device = jax.devices()[0]
    # Of NVIDIA's GPUs such as "9.0", where it begins with 8; those of other makers have it.
    generation = re.match(r"\d+", getattr(device, "compute_capability", ""))
    has_it = device.platform != "cpu" and (not generation or int(generation[0]) >= 8)
    return "bfloat16" if has_it else "float32"


def cpu_cores() -> int:
    """The number of cores that this process may use."""
    # It may be confined to some of them; macOS and Windows do not tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether the device did not have enough memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
