"""A step of `train` beside the bare compiled step: what the host costs, and what the log adds.

The log fetches the losses as `fit` does. `--cases` as of `training_step`.
"""

import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import alternate, rounded
from benchmarks.training_step import Case, ours
from unet_jax import train
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.run.log import RunLog

_GPU_CASES = ("bfloat16:1:64", "bfloat16:1:16")
_CPU_CASES = ("float32:1:16",)
_QUICK_CASES = ("float32:1:4",)


def rows(quick, cases=None):
    """One row for each loop."""
    on_gpu = jax.default_backend() != "cpu"
    rounds, repeats = (2, 3) if quick else (5, 200) if on_gpu else (5, 5)
    for text in cases or (_QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES):
        case = Case.read(text, quick)
        with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(case.precision):
            log = RunLog(Path(folder, "log.jsonl"), 0)
            steps, _, _ = ours(case)
            contestants = {
                "bare step": partial(steps, repeats),
                "train": partial(go_on, a_run(case), repeats),
                "train and log": partial(go_on, a_run(case), repeats, log),
            }
            seconds = alternate(contestants, rounds, repeats)
        for name, times in seconds.items():
            milliseconds = 1e3 * float(np.median(times))
            yield case.row() | {"loop": name, "milliseconds": rounded(milliseconds)}


def a_run(case):
    """The training of the case on made-up micrographs of the size of the ISBI 2012 stack."""
    settings = TrainSettings(tile_side=case.side, batch_size=case.batch_size, steps=10_000)
    return train(synthetic_examples(0, 4), Configuration(model=case.network, train=settings))


def go_on(run, count, log=None):
    """Takes so many steps."""
    for progress in islice(run, count):
        if log and log.add(progress.step, progress.metrics):
            log.fetch(wait=False)
    jax.block_until_ready(progress.state)
