"""The pictures that training and evaluation write."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from unet_jax.example import IGNORED, Example

# Right background, right cell, missed background (merges cells), false background (splits them),
# ignored: distinct also for those who do not see red and green apart.
_ERROR_COLOURS = ListedColormap(["black", "white", "#d62728", "#1f77b4", "#888888"])

_NAME_SHOWN = 30  # characters that fit beside a picture


def save_examples(
    file: Path, examples: list[Example], probabilities: list[np.ndarray], *, threshold: float = 0.5
) -> None:
    """A row for each example: image, truth, probability of cell, and where they disagree.

    Args:
      file: PNG to write.
      examples: at least one.
      probabilities: float [H, W, classes] for each.
      threshold: of the probability of cell, 1 - p(class 0), for the last column.
    """
    figure = Figure(figsize=(13, 3.4 * len(examples)), layout="constrained")
    rows = figure.subplots(len(examples), 4, squeeze=False)
    titles = ["image", "truth", "probability of cell", "errors: red merges, blue splits"]
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title)
    for axes, example, probability in zip(rows, examples, probabilities, strict=True):
        cell = 1 - probability[..., 0]
        image = example.image if example.image.ndim == 2 else example.image.mean(-1)
        low, high = np.percentile(image, [0.5, 99.5])
        axes[0].imshow(image, cmap="gray", vmin=low, vmax=high)
        axes[1].imshow(example.labels, cmap="gray", vmin=0, vmax=probability.shape[-1] - 1)
        axes[2].imshow(cell, cmap="gray", vmin=0, vmax=1)
        axes[3].imshow(
            _error_map(example.labels, cell > threshold), cmap=_ERROR_COLOURS, vmin=0, vmax=4
        )
        axes[0].set_ylabel(example.name[:_NAME_SHOWN])
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=110)


def save_training_curves(file: Path, rows: list[dict[str, Any]]) -> None:
    """Loss of training and validation, and the validation errors, against the step.

    Args:
      file: PNG to write.
      rows: of the run's log.
    """
    training = [row for row in rows if "loss" in row]
    validation = [row for row in rows if "validation" in row]
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, errors = figure.subplots(1, 2)

    # The loss of single tiles is too noisy to see anything: means of a fiftieth of the run.
    group = max(1, len(training) // 50)
    whole = len(training) // group * group
    steps, values = (
        np.array([row[key] for row in training[:whole]]).reshape(-1, group).mean(1)
        for key in ("step", "loss")
    )
    losses.plot(steps, values, label="training, augmented")
    if validation:
        steps = [row["step"] for row in validation]
        losses.plot(steps, [r["validation"]["loss"] for r in validation], "o-", label="validation")
        for name, label in (("pixel_error", "pixel error"), ("rand_error", "Rand error")):
            values = [row["validation"][name] for row in validation]
            errors.plot(steps, values, "o-", label=label)
        errors.set(xlabel="step", ylim=(0, None), title="validation errors")
        errors.legend()
    losses.set(xlabel="step", ylim=(0, None), title="weighted cross-entropy per pixel")
    losses.legend()
    figure.savefig(file, dpi=110)


def _error_map(labels, predicted):
    """Indices into `_ERROR_COLOURS`."""
    truth = labels > 0
    wrong = np.where(predicted, 2, 3)
    return np.where(labels == IGNORED, 4, np.where(truth == predicted, truth, wrong))
