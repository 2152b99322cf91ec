"""Short runs of several seeds: does any diverge, or predict one class everywhere?

python -m benchmarks.seeds --config=configs/em_small.py --folder=runs/seeds
"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from unet_jax import load, predict_tiled
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.provenance import versions
from unet_jax.run.fit import fit
from unet_jax.run.log import read_log
from unet_jax.weight_map import class_weights, weight_maps

_CONFIG = config_flags.DEFINE_config_file("config", "configs/em_small.py")
_FOLDER = flags.DEFINE_string("folder", "runs/seeds", "Where the runs go.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "How many.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of each run.")


def best_constant_loss(configuration, splits):
    """The lowest validation loss of a prediction that is the same everywhere."""
    classes = configuration.model.classes
    class_weight = class_weights([e.labels for e in splits["train"]], classes)
    total, pixels = np.zeros(classes), 0
    validation = splits["validation"]
    maps = weight_maps(validation, class_weight, configuration.weight_map)
    for e, weights in zip(validation, maps, strict=True):
        total += np.bincount(e.labels.ravel(), np.ravel(weights), classes)
        pixels += e.labels.size
    return float(-(total * np.log(total / total.sum())).sum() / pixels)


def main(_):
    """Prints a JSON object for each seed."""
    config = _CONFIG.value
    config.train.steps = config.train.validate_every = _STEPS.value
    configuration = read_configuration(config)
    splits = read_splits(configuration.data, configuration.model.classes)
    constant = best_constant_loss(configuration, splits)
    for seed in range(_SEEDS.value):
        config.train.seed = seed
        workdir = Path(_FOLDER.value) / str(seed)
        fit(config, workdir)
        rows = read_log(workdir / "log.jsonl")
        losses = [row["loss"] for row in rows if "loss" in row]
        model = load(workdir)
        predicted = [predict_tiled(model, e.image).argmax(-1) for e in splits["validation"]]
        shares = np.bincount(np.ravel(predicted), minlength=config.model.classes)
        result = {
            "seed": seed,
            "all_losses_finite": bool(np.isfinite(losses).all()),
            "class_percent": (100 * shares / shares.sum()).round(1).tolist(),
            "validation": rows[-1]["validation"],
            "best_constant_loss": constant,
            "seconds": rows[-1]["seconds"],
        }
        print(json.dumps(result), flush=True)
    print(json.dumps(versions()))


if __name__ == "__main__":
    app.run(main)
