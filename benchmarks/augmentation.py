"""What augmentation costs in a training step, and how far moved weight maps are from exact ones.

python -m benchmarks.augmentation --config=configs/em_small.py
"""

import json
import time
from functools import partial

import jax
import numpy as np
from absl import app
from ml_collections import config_flags

from unet_jax.augmentation import augment, sample, tile_coordinates
from unet_jax.data.arrays import training_arrays, weight_maps
from unet_jax.data.splits import read_splits
from unet_jax.environment import versions
from unet_jax.network import UNet, context
from unet_jax.training import create_optimiser, create_train_state, make_train_step
from unet_jax.weight_map import class_weights, weight_map

_CONFIG = config_flags.DEFINE_config_file("config", "configs/em_small.py")


def median_seconds(function, repetitions=11):
    """Median wall time of a call, the first one left out."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def cost(config, batch):
    """Seconds of one step, and of its augmentation alone."""
    network = UNet(**config.model)
    settings = config.train
    optimiser, _ = create_optimiser(steps=settings.steps, **config.optimiser)
    state = create_train_state(jax.random.key(0), network, optimiser, batch["image"].shape[-1])
    strengths = config.augmentation.to_dict()
    train_step = make_train_step(
        network, optimiser, tile_side=settings.tile_side, augmentation=strengths
    )
    one = partial(
        augment, tile_side=settings.tile_side, context=context(network.depth), **strengths
    )
    augment_batch = jax.jit(jax.vmap(one))

    def step():
        nonlocal state
        state, metrics = train_step(state, batch, jax.random.key(1))
        return metrics

    seconds = median_seconds(lambda: augment_batch(jax.random.split(jax.random.key(1), 1), batch))
    step_seconds = median_seconds(step)
    return {
        "step_seconds": round(step_seconds, 4),
        "augmentation_seconds": round(seconds, 4),
        "augmentation_percent": round(100 * seconds / step_seconds, 2),
    }


def moved_against_recomputed(config, example, weights, tiles=20):
    """Weights moved with the labels against Eq. 2 on the moved cells, over some tiles."""
    side, margin = config.train.tile_side, context(config.model.depth)
    strengths = config.augmentation.to_dict()
    geometry = {k: v for k, v in strengths.items() if not k.endswith("_std")}
    size = np.int32(example.labels.shape)
    class_weight = class_weights([example.labels], config.model.classes)

    @jax.jit
    def both(key):
        at = tile_coordinates(key, size, tile_side=side, **geometry)
        labels, cells, moved = (
            sample(array, at, order=0) for array in (example.labels, example.instances, weights)
        )
        exact = weight_map(labels, cells, class_weight, **config.weight_map)
        inner = (slice(margin, side - margin),) * 2
        return moved[inner], exact[inner]

    recompute = jax.jit(lambda a, b: weight_map(a, b, class_weight, **config.weight_map))
    tile = (example.labels[:side, :side], example.instances[:side, :side])
    moved, exact = (
        np.array(a)
        for a in zip(*(both(k) for k in jax.random.split(jax.random.key(0), tiles)), strict=True)
    )
    difference = np.abs(moved - exact)
    return {
        "mean_weight": round(float(exact.mean()), 3),
        "mean_difference": round(float(difference.mean()), 3),
        "mean_difference_percent": round(float(100 * difference.mean() / exact.mean()), 1),
        "correlation": round(float(np.corrcoef(moved.ravel(), exact.ravel())[0, 1]), 4),
        "recomputing_seconds": round(median_seconds(lambda: recompute(*tile)), 4),
    }


def main(_):
    """Prints a JSON object."""
    config = _CONFIG.value
    examples = read_splits(config.data, config.model.classes)["train"][:1]
    class_weight = class_weights([e.labels for e in examples], config.model.classes)
    weights = weight_maps(examples, class_weight, **config.weight_map)
    batch = {k: v[:1] for k, v in training_arrays(examples, weights).items()}
    result = cost(config, batch) | moved_against_recomputed(config, examples[0], weights[0])
    print(json.dumps(result | {"versions": versions()}, indent=1))


if __name__ == "__main__":
    app.run(main)
