"""This version beside the one in another checkout, --other: training steps and a prediction.

Each version runs in a process of its own, which does a call when it is told to; the two take turns,
so that both see the machine in the same state. `this_over_other` is the median of the ratios of 20
rounds, `low` and `high` the ends of its 95 % interval (bootstrap of the rounds). With --other=. it
is this one beside itself.
"""

import os
import runpy
import sys
import time
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import jax
import numpy as np

from benchmarks.prediction import a_model
from unet_jax import predict_tiled
from unet_jax.network import UNet

_HERE = Path(__file__).resolve()
_ROUNDS = 20
_FIGURES = ("this_seconds", "other_seconds", "this_over_other", "low", "high")


def rows(quick, other):
    """One row for each call."""
    yield from compared(_HERE, quick, other)


def compared(file, quick, other):
    """One row for each of the `CALLS` in a file, which both versions run."""
    rounds = 2 if quick else _ROUNDS
    checkouts = _HERE.parents[1], Path(other).resolve()
    with worker(file, checkouts[0], quick) as this, worker(file, checkouts[1], quick) as that:
        for call in runpy.run_path(str(file))["CALLS"]:
            spent = []
            for i in range(rounds + 1):
                # Who comes second may find the machine warmer.
                order = (this, that) if i % 2 else (that, this)
                times = {process: seconds(process, call) for process in order}
                spent.append((times[this], times[that]))
            spent = np.array(spent[1:])  # the first ones compiled
            ratios = spent[:, 0] / spent[:, 1]
            drawn = np.random.default_rng(0).choice(ratios, (10_000, rounds))
            ends = np.percentile(np.median(drawn, 1), (2.5, 97.5))
            figures = np.round([*np.median(spent, 0), np.median(ratios), *ends], 4).tolist()
            yield {"call": call} | dict(zip(_FIGURES, figures, strict=True))


def worker(file, checkout, quick):
    """A process that runs a version's calls until its input ends."""
    # -P: the modules beside this file must not stand for others of the same name.
    command = [sys.executable, "-P", str(_HERE), str(file), *(["--quick"] if quick else [])]
    path = os.environ | {"PYTHONPATH": str(checkout)}
    return Popen(command, env=path, cwd=checkout, stdin=PIPE, stdout=PIPE, text=True)


def seconds(process, call):
    """What a worker takes for one of the `CALLS`."""
    print(call, file=process.stdin, flush=True)
    return float(process.stdout.readline())


def work(file, quick):
    """Does the call that each line of the input names, and prints its seconds."""
    calls, made = runpy.run_path(file)["CALLS"], {}
    for name in map(str.strip, sys.stdin):
        made[name] = made.get(name) or calls[name](quick=quick)
        began = time.perf_counter()
        made[name]()
        print(time.perf_counter() - began, flush=True)


def training_step(width, quick):
    """A call that takes one step on a tile of 444x444 pixels."""
    network, side = (UNet(width=width, depth=2), 44) if quick else (UNet(width=width), 444)
    batch = {
        "image": np.random.default_rng(0).normal(size=(1, 512, 512, 1)).astype(np.float32),
        "labels": np.indices((1, 512, 512), np.int32)[1] // 8 % 2,
        "weights": np.ones((1, 512, 512), np.float32),
        "size": np.full((1, 2), 512, np.int32),
    }
    try:
        from unet_jax.augmentation import Crop
        from unet_jax.optimiser import sgd
        from unet_jax.train_step import create_train_state, make_train_step

        optimiser, batch, settings = sgd(steps=10_000), Crop(**batch), {}
    except ImportError:  # a version before its settings had classes
        from unet_jax.training import create_optimiser, create_train_state, make_train_step

        from configs import em

        optimiser, _ = create_optimiser(steps=10_000, **em.get_config().optimiser)
        settings = {"augmentation": em.get_config().augmentation.to_dict()}
    state = create_train_state(jax.random.key(0), network, optimiser, channels=1)
    train_step = make_train_step(network, optimiser, tile_side=side, **settings)
    batch, key = jax.device_put(batch), jax.random.key(1)

    def step():
        nonlocal state
        state, metrics = train_step(state, batch, key)
        metrics["loss"].block_until_ready()

    return step


def prediction(width, quick):
    """A call that predicts an image of 1024x1024 pixels."""
    side = 100 if quick else 1024
    image = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    return partial(predict_tiled, a_model(width), image)


CALLS = {
    "training step, width 16": partial(training_step, 16),
    "training step, width 8": partial(training_step, 8),
    "prediction, width 16": partial(prediction, 16),
}

if __name__ == "__main__":
    work(sys.argv[1], "--quick" in sys.argv)
