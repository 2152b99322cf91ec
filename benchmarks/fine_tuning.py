"""Errors on ISBI 2012 after training on 2, 5 and 20 slices: fine-tuned, and from scratch.

The paper's network with a quarter of the width, and tiles of 316 pixels. It is trained on made-up
micrographs alone, and then for 1000 steps on the first slices; beside it a random start with as
many steps of the same configuration, and once a frozen contracting path. Slices 22 to 24 choose the
best step, 25 to 29 are the test. Runs are kept in `runs/fine_tuning` and not repeated.
"""

from pathlib import Path

from benchmarks.recipes import of_em
from benchmarks.side_by_side import rounded
from configs import demo
from unet_jax import load, predict_tiled
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.metrics.scores import em_counts, em_scores
from unet_jax.run.fit import fit
from unet_jax.run.log import read_log

_TILE_SIDE = 316
_STEPS = 1000
# Slices and seed.
_RUNS = ((2, 0), (5, 0), (20, 0), (2, 1), (2, 2))


def rows(quick):
    """One row for each run; the first is the network that has seen no slice."""
    folder = Path("runs", "fine_tuning_quick" if quick else "fine_tuning")
    pretrained = folder / "pretrained"
    config = pretraining()
    if quick:
        config.data.train, config.data.validation, config.data.test = (0, 2), (2, 3), (3, 4)
        shorten(config)
    fit(config, pretrained)
    test = read_splits(read_configuration(of_em()).data, classes=2)["test"]
    yield {"start": "pretrained", "slices": 0} | result(pretrained, test)
    runs = [(start, *run) for run in _RUNS for start in ("pretrained", "random")]
    runs.append(("frozen", 2, 0))
    for start, slices, seed in runs[:2] if quick else runs:
        config = tuning(slices, seed)
        if start != "random":
            config.train.start_from = str(pretrained)
            config.train.freeze_contracting_path = start == "frozen"
        if quick:
            shorten(config)
        workdir = folder / f"{start}_{slices}_{seed}"
        fit(config, workdir)
        yield {"start": start, "slices": slices, "seed": seed} | result(workdir, test)


def shorten(config):
    """Leaves a few steps."""
    config.optimiser.warmup_steps, config.train.steps, config.train.validate_every = 1, 4, 4


def pretraining():
    """The configuration of the training on made-up micrographs."""
    config = demo.get_config()
    config.model = of_em().model
    config.data.height = config.data.width = 512
    config.data.train, config.data.validation, config.data.test = (0, 96), (96, 100), (100, 101)
    config.train.tile_side = _TILE_SIDE
    config.train.steps = 4000
    config.train.validate_every = 500
    return config


def tuning(slices, seed):
    """The configuration of the training on the first so many slices."""
    config = of_em()
    config.data.train = (0, slices)
    config.train.seed = seed
    config.train.tile_side = _TILE_SIDE
    config.train.steps = _STEPS
    config.train.validate_every = 125
    return config


def result(workdir, test):
    """The scores of a run's best step, chosen by validation, and the seconds that it trained."""
    model = load(workdir)
    scores = em_scores(em_counts(test, [1 - predict_tiled(model, e.image)[..., 0] for e in test]))
    return {
        "step": model.record.step,
        "seconds": read_log(workdir / "log.jsonl")[-1]["seconds"],
        "validation_loss": rounded(model.record.validation["loss"]),
    } | {name: rounded(score.value) for name, score in scores.items()}
