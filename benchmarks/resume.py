"""Whether a run that was stopped and goes on ends with the same bits as one that was not.

With the compiled code that the first one has left, and compiled anew: then a GPU's algorithms are
chosen anew, by their time. The last two forbid XLA what depends on the order of additions.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import rounded
from unet_jax import checkpoint
from unet_jax.run.log import read_log

# What is tried: flags of XLA, and whether each start compiles anew.
_WAYS = (("", False), ("", True))
_GPU_WAYS = (
    ("--xla_gpu_deterministic_ops=true", True),
    ("--xla_gpu_exclude_nondeterministic_ops=true", True),
)


def rows(quick):
    """One row for each way to compile."""
    on_gpu = jax.default_backend() != "cpu"
    for flags, anew in _WAYS + _GPU_WAYS if on_gpu else _WAYS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            whole, stopped = Path(folder, "whole"), Path(folder, "stopped")
            caches = [Path(folder, f"compiled{i if anew else ''}") for i in range(3)]
            steps = 40 if quick else 3000
            status = [
                trained(whole, steps, flags, caches[0]),
                trained(stopped, steps, flags, caches[1], stop_after=steps // 5),
                trained(stopped, steps, flags, caches[2]),
            ]
            a, b = (
                jax.tree.leaves(checkpoint.load(workdir, "latest").params)
                for workdir in (whole, stopped)
            )
        differences = [float(np.abs(np.asarray(x - y)).max()) for x, y in zip(a, b, strict=True)]
        yield {
            "flags": flags,
            "compiled_anew": anew,
            "same_bits": not any(differences),
            "largest_difference": rounded(max(differences)),
            "status": status,
            "seconds": rounded(time.perf_counter() - began),
        }


def trained(workdir, steps, flags, cache, stop_after=None):
    """The exit status of `train.py`, which is asked to stop after so many steps."""
    quick = steps < 100
    settings = {
        "model.width": 2 if quick else 16,
        "model.depth": 2 if quick else 5,
        "model.dtype": "bfloat16",
        "train.tile_side": 44 if quick else 252,
        "train.steps": steps,
        "train.validate_every": steps // 2,
        "optimiser.warmup_steps": 10,
    }
    command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        while stop_after and process.poll() is None:
            if any(row["step"] >= stop_after for row in read_log(workdir / "log.jsonl")):
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        return process.wait()
