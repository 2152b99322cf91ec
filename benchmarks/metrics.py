"""Time of the metrics on 30 slices of 512x512, beside that of Fiji's official code.

The labels are those of the ISBI 2012 stack if UNET_JAX_DATA is set, else made up. The prediction is
made of them: blurred, with noise as smooth as what a network gives.
"""

import os
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.side_by_side import rounded, timed
from unet_jax.data.isbi2012 import read_isbi2012
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.metrics import pixel_error, rand_error, v_info, v_rand, warping_error

#: Seconds of Fiji's official code for as many slices on two cores.
FIJI_SECONDS = {warping_error: 79, rand_error: 46, v_rand: 25, v_info: 23, pixel_error: 1}


def rows(quick):
    """One row for each metric."""
    own = "UNET_JAX_DATA" in os.environ
    examples = read_isbi2012() if own else synthetic_examples(0, 3 if quick else 30)
    labels = np.stack([example.labels for example in examples])
    rng = np.random.default_rng(0)
    proposal = np.stack([prediction(rng, cell) for cell in labels])
    for metric, fiji in FIJI_SECONDS.items():
        compiles = timed(partial(metric, labels[:1], proposal[:1]))
        score = metric(labels, proposal)
        seconds = timed(partial(metric, labels, proposal))
        yield {
            "metric": metric.__name__,
            "labels": "ISBI 2012" if own else "made up",
            "value": round(score.value, 6),
            "seconds": round(seconds, 2),
            "fiji_seconds": fiji,
            "ours_over_it": rounded(seconds / fiji),
            "first_call_seconds": round(compiles, 2),
        }


def prediction(rng, cell):
    """Probability of cell, float32 [H, W]: right for most pixels, with some mergers and splits."""
    noise = gaussian_filter(rng.standard_normal(cell.shape), 2)
    blurred = gaussian_filter(cell.astype(float), 1.5) + 0.2 * noise / noise.std()
    return blurred.clip(0, 1).astype(np.float32)
