"""What augmentation costs, beside SciPy; how far moved weight maps are from exact ones.

A tile of 572x572 pixels out of a made-up micrograph, and its share of a training step of the
paper's network and of a narrow one. A weight map that moves with the labels is held against Eq. 2
computed on the moved cells.
"""

from functools import partial

import jax
import numpy as np

from benchmarks.side_by_side import alternate, rounded
from benchmarks.time_to_accuracy import deformed, whole_images
from benchmarks.training_step import Case
from benchmarks.training_step import ours as training_step
from unet_jax.augmentation import AugmentationSettings, augment, sample, tile_coordinates
from unet_jax.configuration import Configuration
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.network import context
from unet_jax.weight_map import class_weights, weight_map


def rows(quick):
    """One row for each network, and one for the weight maps."""
    (example,) = synthetic_examples(0, 1, height=512, width=512)
    (crop,) = whole_images([example], Configuration())
    on_device, key, rng = jax.device_put(crop), jax.random.key(1), np.random.default_rng(0)
    for width in (2,) if quick else (16, 64):
        case = Case.read(f"float32:1:{width}", quick)
        geometry = {"tile_side": case.side, "context": context(case.network.depth)}
        ours = jax.jit(partial(augment, **geometry))
        scipy = partial(deformed, rng, crop, AugmentationSettings(), **geometry)
        step, _, _ = training_step(case)
        seconds = alternate(
            {
                "augmentation": lambda ours=ours: jax.block_until_ready(ours(key, on_device)),
                "SciPy": scipy,
                "step": partial(step, 1),
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
    yield moved_against_recomputed(example, crop, 2 if quick else 20, **geometry)


def moved_against_recomputed(example, crop, tiles, *, tile_side, context):
    """Weights moved with the labels against Eq. 2 on the moved cells, over some tiles."""
    class_weight = class_weights([crop.labels], classes=2)

    @jax.jit
    def both(key):
        at = tile_coordinates(key, crop.size, tile_side=tile_side, context=context)
        labels, cells, moved = (
            sample(array, at, order=0) for array in (crop.labels, example.instances, crop.weights)
        )
        exact = weight_map(labels, cells, class_weight)
        inner = (slice(context, tile_side - context),) * 2
        return moved[inner], exact[inner]

    keys = jax.random.split(jax.random.key(0), tiles)
    moved, exact = (np.array(a) for a in zip(*map(both, keys), strict=True))
    difference = np.abs(moved - exact).mean()
    return {
        "mean_weight": rounded(float(exact.mean())),
        "mean_difference_percent": rounded(float(100 * difference / exact.mean())),
        "correlation": round(float(np.corrcoef(moved.ravel(), exact.ravel())[0, 1]), 4),
    }
