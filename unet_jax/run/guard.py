"""The numerical guard: training that has gone wrong is stopped or reported.

`RunLog.fetch` looks at each step; `fit` stops at the first that is not finite.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from unet_jax import checkpoint
from unet_jax.errors import RunFailed
from unet_jax.example import IGNORED, Example
from unet_jax.files.output import complete
from unet_jax.run.processes import writes
from unet_jax.training_images import Draw

#: Where the step that was not finite is recorded.
FAILURE = "failure.json"
# A gradient that has grown by so much announces itself.
_GROWTH = 10.0
_ADVICE = "try a lower config.optimiser.peak_learning_rate"
#: What to tell the user where parameters grow without bound.
TOO_LARGE_STEPS = f"the steps are probably too large: {_ADVICE}"


def is_finite(row: dict[str, float]) -> bool:
    """Whether loss and gradient of a training step are finite."""
    return math.isfinite(row["loss"]) and math.isfinite(row["gradient_norm"])


def record_failure(
    workdir: Path,
    row: dict[str, float],
    log: list[dict[str, Any]],
    drawn: Draw,
    examples: Sequence[str],
    seed: int,
) -> RunFailed:
    """Writes `failure.json` for a step that is not finite; returns the error to raise.

    Args:
      workdir: the run's folder.
      row: the step's row.
      log: the rows before it.
      drawn: the examples that the step was given, and its key, to replay it.
      examples: the names of all training examples.
      seed: of the run.
    """
    step, last_saved = row["step"], max(checkpoint.saved_steps(workdir), default=None)
    names = [examples[i] for i in drawn.indices]
    batch = {"seed": seed, "examples": names, "key": jax.random.key_data(drawn.key).tolist()}
    kept = "no step was saved" if last_saved is None else f"step {last_saved} is kept"
    cause = _likely_cause(log, names)
    record: dict[str, Any] = {
        name: str(value) for name, value in row.items()
    }  # JSON has no word for NaN
    record |= {"step": step, "likely_cause": cause, "last_saved": last_saved} | batch
    if writes():
        with complete(workdir / FAILURE) as unfinished:
            unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return RunFailed(
        f"Step {step}: the loss is {row['loss']:g}, the norm of its gradient "
        f"{row['gradient_norm']:g}, at a learning rate of {row['learning_rate']:.2g}; {cause}; "
        f"{kept}. {workdir / FAILURE} says how to replay the step."
    )


def _likely_cause(log, examples):
    norms = [row["gradient_norm"] for row in log if "gradient_norm" in row][-100:]
    if not norms or norms[-1] > _GROWTH * np.median(norms) or len(norms) < 3:
        return TOO_LARGE_STEPS
    return (
        f"there was no sign of it before, so look at the images of the step, {', '.join(examples)},"
        f" and then {_ADVICE}"
    )


def collapse(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray], class_names: Sequence[str]
) -> str | None:
    """A warning for the user if the network gives every pixel the same class, otherwise None.

    Args:
      examples: of the validation split.
      probabilities: float [H, W, classes] for each.
      class_names: by class.
    """
    found = probabilities[0][0, 0].argmax()
    if any((p.argmax(-1) != found).any() for p in probabilities):
        return None
    true = np.unique(np.concatenate([np.unique(e.labels) for e in examples]))
    if len(true[true != IGNORED]) < 2:
        return None
    return (
        f"every pixel of the validation images gets the class {class_names[found]!r}. This is "
        f"common in the first steps; if it continues, look at the masks, and {_ADVICE}."
    )
