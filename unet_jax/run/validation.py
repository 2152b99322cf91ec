"""The validation that chooses the best step."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.errors import RunFailed
from unet_jax.example import Example, is_sparse
from unet_jax.loss import mean_over_pixels, weighted_cross_entropy
from unet_jax.metrics.scores import class_scores, em_errors
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_tiled
from unet_jax.run.guard import TOO_LARGE_STEPS


@dataclass(frozen=True)
class Validation:
    """How good a network is on the validation split.

    Attributes:
      scores: `loss` and errors by name; for how steps are compared, see `checkpoint.best_step`.
      probabilities: float32 [H, W, classes] for each image.
    """

    scores: dict[str, float]
    probabilities: list[np.ndarray]


def validate(
    model: Model,
    examples: Sequence[Example],
    weights: Sequence[np.ndarray],
    class_names: Sequence[str],
    row: dict[str, float],
) -> Validation:
    """Predicts the examples, which are of the network's scale, and scores the result.

    Args:
      model: the network in training.
      examples: the validation split.
      weights: their weight maps.
      class_names: by class.
      row: the step's row in the log.

    Raises:
      RunFailed: the output is no longer finite.
    """
    probabilities = [predict_tiled(model, example.image) for example in examples]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise RunFailed(
            f"Step {row['step']}: the network's output is no longer finite, at a learning rate of "
            f"{row['learning_rate']:.2g}; {TOO_LARGE_STEPS}."
        )
    parts = [
        _weighted_cross_entropy(p, e.labels, w)
        for p, e, w in zip(probabilities, examples, weights, strict=True)
    ]
    errors = em_errors(examples, [1 - p[..., 0] for p in probabilities])
    scores = {"loss": float(mean_over_pixels(*np.array(jax.device_get(parts)).T))}
    scores |= {name: error.value for name, error in errors.items()}
    sparse = is_sparse(examples)
    if sparse:
        scores.pop("rand_error", None)  # of cells, not of strokes
    if sparse or len(class_names) > 2 or not errors:
        mean_iou = class_scores(examples, probabilities, class_names).mean_iou
        if mean_iou is not None:
            scores["mean_iou"] = mean_iou
    return Validation(scores, probabilities)


@jax.jit
def _weighted_cross_entropy(probabilities, labels, weights):
    # The soft-max of these logits are the probabilities.
    logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
    return weighted_cross_entropy(logits, labels, weights)
