"""What ten CPU minutes teach: settings beside the paper's, scored on validation images alone.

On ISBI 2012, trained on slices 0 to 21 and scored on 22 to 24; and on nuclei, the first 40 images
of `dsb2018` in UNET_JAX_DATA, of which 6 are scored. Ten minutes of one core, five of two: the
number of steps follows from the processor's time that one takes, whatever else runs. Runs are kept
in `runs/recipes` and not repeated. The test images are not looked at.
"""

import os
import shutil
import time
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from benchmarks.side_by_side import rounded
from configs import em, folder
from unet_jax import find_cells, load, predict_tiled, train
from unet_jax.checkpoint import describe, saved_steps
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_run
from unet_jax.evaluation.instance_tuning import tune
from unet_jax.metrics import matching
from unet_jax.metrics.scores import em_counts, em_scores
from unet_jax.run.fit import fit

_SECONDS = 600
_SGD = {
    "optimiser.kind": "sgd",
    "optimiser.momentum_warmup_steps": 300,
    "train.average_over": 0.0,
}
_ADAM = {
    "optimiser.kind": "adam",
    "optimiser.peak_learning_rate": 1e-3,
    "train.average_over": 0.1,
}
_SHALLOW = _ADAM | {"model.depth": 4, "model.dropout_rate": 0.0, "train.tile_side": 284}
RECIPES = {
    "em": {
        "sgd": _SGD,
        "adam": _ADAM,
        "adam, 3e-3": _ADAM | {"optimiser.peak_learning_rate": 3e-3},
        "adam, depth 4": _SHALLOW,
        "adam, depth 4, 3e-3": _SHALLOW | {"optimiser.peak_learning_rate": 3e-3},
        "adam, depth 4, tiles of 444": _SHALLOW | {"train.tile_side": 444},
        "adam, depth 4, width 24": _SHALLOW | {"model.width": 24},
    },
    "nuclei": {
        "sgd": _SGD,
        "adam": _ADAM,
        "adam, tiles of 444": _ADAM | {"train.tile_side": 444},
    },
}


def rows(quick, cases=None):
    """One row for each recipe; cases are such as `em` or `nuclei`."""
    place = Path("runs", "recipes_quick" if quick else "recipes")
    for data in cases or RECIPES:
        for name, changes in RECIPES[data].items():
            config = of_em() if data == "em" else of_nuclei(place / "dsb2018", 40)
            config.update_from_flattened_dict(changes)
            workdir = place / data / name.replace(", ", "_").replace(" ", "_")
            if quick:
                config.model.width = 2
            steps = 4 if quick else planned_steps(workdir) or steps_in(_SECONDS, config)
            config.train.steps = config.train.validate_every = steps
            config.optimiser.warmup_steps = min(100, steps - 1)
            fit(config, workdir)
            yield {"data": data, "recipe": name, "steps": steps} | _scores(data, workdir)


def of_em():
    """The paper's experiment with a quarter of the width."""
    config = em.get_config()
    config.model.width, config.train.tile_side = 16, 444
    return config


def of_nuclei(place, count):
    """That of a folder, which is made, of the first so many images of nuclei."""
    source = Path(os.environ["UNET_JAX_DATA"], "dsb2018")
    config = folder.get_config()
    config.data.mask_rule = "instances"
    for name, kind in (("images", "images"), ("labels", "masks")):
        there = place / kind
        there.mkdir(parents=True, exist_ok=True)
        for file in sorted((source / kind).iterdir())[:count]:
            shutil.copyfile(file, there / file.name)
        config.data[name] = str(there)
    return config


def planned_steps(workdir):
    """Those of a run that has begun, or 0."""
    saved = saved_steps(workdir)
    return describe(workdir, saved[-1]).training.config.train.steps if saved else 0


def steps_in(seconds, config):
    """How many fit into so many seconds of the processor."""
    configuration = read_configuration(config)
    _, seen = read_run(configuration.data, configuration.model.classes)
    steps = train(seen["train"], configuration)
    jax.block_until_ready([progress.state for progress in islice(steps, 4)][-1])
    began = time.process_time()
    jax.block_until_ready([progress.state for progress in islice(steps, 15)][-1])
    steps.close()
    return round(seconds / ((time.process_time() - began) / 15))


def _scores(data, workdir):
    """Of the last step, on the validation images."""
    model = load(workdir, "latest")
    config = model.training.config
    examples = read_run(config.data, config.model.classes)[0]["validation"]
    cell = [1 - predict_tiled(model, example.image)[..., 0] for example in examples]
    loss = {"loss": rounded(model.record.validation["loss"])}
    if data == "em":
        scores = em_scores(em_counts(examples, cell))
        return loss | {name: rounded(score.value) for name, score in scores.items()}
    settings, quality, _ = tune(examples, cell)
    found = [find_cells(probability, settings) for probability in cell]
    of_cells = matching([example.instances for example in examples], found)
    precisions = [at.average_precision for at in of_cells]
    return loss | {
        "seg": rounded(quality.seg),
        "ap_50": rounded(precisions[0]),
        "ap": rounded(float(np.mean(precisions))),
    }
