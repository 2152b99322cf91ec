"""A step of `train` beside the bare compiled step: what the host costs, and what the log adds.

The log fetches the losses as `fit` does. The last rows, "host alone", are of the same loops where a
step computes nothing but a crop of its image: on one core (`taskset -c 0`) what the host takes.
`--cases` as of `training_step`.
"""

import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.side_by_side import alternate, rounded
from benchmarks.training_step import Case, ours
from unet_jax import train, training_loop
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.run.log import RunLog

_GPU_CASES = ("bfloat16:1:64", "bfloat16:1:16")
_CPU_CASES = ("float32:1:16",)
_QUICK_CASES = ("float32:1:4",)
_AT_ONCE = 10


def rows(quick, cases=None):
    """One row for each loop."""
    on_gpu = jax.default_backend() != "cpu"
    rounds, repeats = (2, 10) if quick else (5, 200) if on_gpu else (3, 10)
    for text in cases or (_QUICK_CASES if quick else _GPU_CASES if on_gpu else _CPU_CASES):
        case = Case.read(text, quick)
        with tempfile.TemporaryDirectory() as folder, jax.default_matmul_precision(case.precision):
            steps, _, _ = ours(case)
            contestants = {"bare step": partial(steps, repeats)} | loops(case, repeats, folder)
            yield from _rows(case, alternate(contestants, rounds, repeats))
    case = Case.read("float32:1:4", quick)
    alone = patch.object(training_loop, "pure_train_step", lambda *_, **__: crop)
    with tempfile.TemporaryDirectory() as folder, alone:
        rounds, repeats = (2, 10) if quick else (20, 200)
        for row in _rows(case, alternate(loops(case, repeats, folder), rounds, repeats)):
            yield row | {"loop": f"host alone, {row['loop']}"}


def loops(case, repeats, folder):
    """By name, what takes so many steps."""
    return {
        f"{name}{and_log}": partial(
            go_on,
            a_run(case, at_once),
            repeats // at_once,
            RunLog(Path(folder, f"{at_once}.jsonl"), 0) if and_log else None,
        )
        for and_log in ("", " and log")
        for name, at_once in (("train", 1), ("train, ten at once", _AT_ONCE))
    }


def a_run(case, at_once=1):
    """The training of the case on made-up micrographs of the size of the ISBI 2012 stack."""
    settings = TrainSettings(tile_side=case.side, batch_size=case.batch_size, steps=10_000)
    configuration = Configuration(model=case.network, train=settings)
    return train(synthetic_examples(0, 4), configuration, steps_at_once=at_once)


def go_on(run, count, log=None):
    """Takes so many steps, or so many times those that are done at once."""
    for progress in islice(run, count):
        if log and log.add(progress.steps):
            log.fetch(wait=False)
    jax.block_until_ready(progress.state)


def crop(state, batch, key):
    """In place of a training step."""
    metrics = {"loss": batch.image[0, 0, 0, 0], "gradient_norm": jnp.float32(1)}
    return state.replace(step=state.step + 1), metrics


def _rows(case, seconds):
    for name, times in seconds.items():
        milliseconds = 1e3 * float(np.median(times))
        yield case.row() | {"loop": name, "milliseconds": rounded(milliseconds)}
