"""What augmentation costs, beside SciPy; how far moved weight maps are from exact ones.

A tile of 572x572 pixels out of a made-up micrograph, and its share of a training step of the
paper's network and of a narrow one. A weight map that moves with the labels is held against Eq. 2
computed on the moved cells.
"""

from functools import partial

import jax
import numpy as np
from unet_jax.data.arrays import take, training_arrays, weight_maps

from benchmarks.side_by_side import alternate, rounded
from benchmarks.time_to_accuracy import deformed
from benchmarks.training_step import ours as training_step
from configs import em
from unet_jax.augmentation import augment, sample, tile_coordinates
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.network import context
from unet_jax.weight_map import class_weights, weight_map


def rows(quick):
    """One row for each network, and one for the weight maps."""
    config = em.get_config()
    side = 188 if quick else config.train.tile_side
    (example,) = synthetic_examples(0, 1, height=512, width=512)
    class_weight = class_weights([example.labels], config.model.classes)
    weights = weight_maps([example], class_weight, **config.weight_map)
    margin = context(config.model.depth)
    strengths = config.augmentation.to_dict()
    keys = jax.random.split(jax.random.key(1), 1)
    dataset = training_arrays([example], weights)
    # Of a tile this large, the part that it can reach is the whole image.
    batch = take(
        dataset,
        np.array([0]),
        keys,
        tile_side=config.train.tile_side,
        context=margin,
        augmentation=strengths,
    )
    host = jax.tree.map(lambda x: np.asarray(x)[0], batch)
    one = partial(augment, tile_side=side, context=margin, **strengths)
    augment_batch = jax.jit(jax.vmap(one))
    rng = np.random.default_rng(0)
    for width in (2,) if quick else (16, 64):
        step, _ = training_step(width, 1, side, "float32", augmented=True)
        seconds = alternate(
            {
                "augmentation": lambda: jax.block_until_ready(augment_batch(keys, batch)),
                "SciPy": lambda: deformed(rng, host, side, margin, config.augmentation),
                "step": step,
            },
            rounds=5,
        )
        median = {name: float(np.median(times)) for name, times in seconds.items()}
        yield {
            "width": width,
            "seconds": rounded(median["augmentation"]),
            "step_seconds": rounded(median["step"]),
            "percent_of_step": rounded(100 * median["augmentation"] / median["step"]),
            "scipy_seconds": rounded(median["SciPy"]),
            "ours_over_it": rounded(median["augmentation"] / median["SciPy"]),
        }
    yield moved_against_recomputed(config, side, example, weights[0], tiles=2 if quick else 20)


def moved_against_recomputed(config, side, example, weights, tiles):
    """Weights moved with the labels against Eq. 2 on the moved cells, over some tiles."""
    margin = context(config.model.depth)
    strengths = config.augmentation.to_dict()
    geometry = {k: v for k, v in strengths.items() if not k.endswith("_std")}
    size = np.int32(example.labels.shape)
    class_weight = class_weights([example.labels], config.model.classes)

    @jax.jit
    def both(key):
        at = tile_coordinates(key, size, tile_side=side, context=margin, **geometry)
        labels, cells, moved = (
            sample(array, at, order=0) for array in (example.labels, example.instances, weights)
        )
        exact = weight_map(labels, cells, class_weight, **config.weight_map)
        inner = (slice(margin, side - margin),) * 2
        return moved[inner], exact[inner]

    keys = jax.random.split(jax.random.key(0), tiles)
    moved, exact = (np.array(a) for a in zip(*map(both, keys), strict=True))
    difference = np.abs(moved - exact).mean()
    return {
        "mean_weight": rounded(float(exact.mean())),
        "mean_difference_percent": rounded(float(100 * difference / exact.mean())),
        "correlation": round(float(np.corrcoef(moved.ravel(), exact.ravel())[0, 1]), 4),
    }
