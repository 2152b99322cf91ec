"""Whether a run that was stopped and goes on ends with the same bits as one that was not.

With the compiled code that the first one has left, and compiled anew: then a GPU's algorithms are
chosen anew, by their time, unless `train.deterministic` forbids it.
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

# What is tried: `train.deterministic`, and whether each start compiles anew.
_WAYS = ((False, False), (False, True), (True, True))


def rows(quick):
    """One row for each way to compile."""
    for deterministic, anew in _WAYS:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            whole, stopped = Path(folder, "whole"), Path(folder, "stopped")
            caches = [Path(folder, f"compiled{i if anew else ''}") for i in range(3)]
            steps = 40 if quick else 3000
            status = [
                trained(whole, steps, deterministic, caches[0]),
                trained(stopped, steps, deterministic, caches[1], stop_after=steps // 5),
                trained(stopped, steps, deterministic, caches[2]),
            ]
            a, b = (
                jax.tree.leaves(checkpoint.load(workdir, "latest").params)
                for workdir in (whole, stopped)
            )
        differences = [float(np.abs(np.asarray(x - y)).max()) for x, y in zip(a, b, strict=True)]
        yield {
            "deterministic": deterministic,
            "compiled_anew": anew,
            "same_bits": not any(differences),
            "largest_difference": rounded(max(differences)),
            "status": status,
            "seconds": rounded(time.perf_counter() - began),
        }


def trained(workdir, steps, deterministic, cache, stop_after=None):
    """The exit status of `train.py`, which is asked to stop after so many steps."""
    quick = steps < 100
    settings = {
        "model.width": 2 if quick else 16,
        "model.depth": 2 if quick else 5,
        "model.dtype": "bfloat16",
        "train.tile_side": 44 if quick else 252,
        "train.steps": steps,
        "train.validate_every": steps // 2,
        "train.deterministic": deterministic,
        "optimiser.warmup_steps": 10,
    }
    command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, **quiet) as process:
        while stop_after and process.poll() is None:
            if any(row["step"] >= stop_after for row in read_log(workdir / "log.jsonl")):
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.05)
        return process.wait()
