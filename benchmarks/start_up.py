"""Seconds from `python train.py` to its first step, cold and with compiled code kept from before.

The paper's network with a quarter of the width and tiles of 444 pixels, on four made-up pictures of
512x512; each start is a process of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.side_by_side import rounded


def rows(quick):
    """One row for each start."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        for start in ("cold", "warm", "warm"):
            workdir = Path(folder, "run")
            yield {"start": start, "seconds": rounded(first_step(workdir, environment, quick))}
            shutil.rmtree(workdir)


def first_step(workdir, environment, quick):
    """Seconds until the first line of the run's log."""
    command = [
        *(sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={workdir}"),
        *("--config.train.steps=1", "--config.optimiser.warmup_steps=0"),
        *("--config.data.train=(0, 2)", "--config.data.validation=(2, 3)"),
        "--config.data.test=(3, 4)",
        *("--config.data.height=512", "--config.data.width=512"),
    ]
    if not quick:
        command += ["--config.model.width=16", "--config.model.depth=5"]
        command += ["--config.train.tile_side=444"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        log = workdir / "log.jsonl"
        while not (log.exists() and log.read_text()):
            if process.poll():
                raise RuntimeError(f"train.py ended with {process.returncode}.")
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        process.kill()
    return seconds
