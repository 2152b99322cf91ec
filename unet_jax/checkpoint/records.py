"""Reading `checkpoint.json`, which may come from a stranger; for its content see `run_record`."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from unet_jax.checkpoint.integrity import UNREADABLE, damaged, read_verified_record
from unet_jax.checkpoint.steps import saved_steps, step_folder
from unet_jax.errors import InputError
from unet_jax.run_record import Record, read_record
from unet_jax.weight_map import WeightMapSettings


class Measured(NamedTuple):
    """The error by which the steps of a run are compared.

    Attributes:
      error: on the validation images, None if the step was not validated: 1 - mean IoU of the
        classes, or else the pixel error. In long trainings the loss rises again while these still
        fall, as the network becomes more certain; it counts only if there is nothing else.
      of: the weight map's settings, and a digest of the images: with the names of many images, each
        step would hold megabytes.
    """

    error: float | None
    of: tuple[WeightMapSettings, bytes] | None


def describe(workdir: Path, step: int) -> Record:
    """The record that was saved with a step.

    Raises:
      InputError: it is not what was saved, or was not written by this program.
    """
    folder = step_folder(workdir, step)
    try:
        values = json.loads(read_verified_record(folder))
    except UNREADABLE as error:
        raise damaged(workdir, step, error) from error
    try:
        return read_record(values)
    except InputError as error:
        raise InputError(f"{folder}: is not a checkpoint of this program ({error}).") from error


def best_step(workdir: Path, measured: dict[int, Measured] | None = None) -> int:
    """The step with the lowest validation error; the latest, if none has been validated.

    If a run continued with other data or weights, only the errors since then are compared.

    Args:
      workdir: the run's folder.
      measured: the errors of steps whose records need not be read; the others are added.
    """
    measured = {} if measured is None else measured
    steps = saved_steps(workdir)
    for step in steps:
        if step not in measured:
            measured[step] = measured_on(describe(workdir, step))
    latest = measured[steps[-1]]
    validated = {
        step: error
        for step in steps
        if (error := measured[step].error) is not None and measured[step].of == latest.of
    }
    return min(validated, key=validated.__getitem__) if validated else steps[-1]


def measured_on(record: Record) -> Measured:
    """The validation error of a step, and what it was measured on."""
    error = None
    if record.validation:
        scores = record.validation
        error = scores.get("pixel_error", scores["loss"])
        if "mean_iou" in scores:
            error = 1 - scores["mean_iou"]
    if not record.training:
        return Measured(error, None)
    digest = hashlib.sha256()
    for pair in sorted(record.training.data.items()):
        digest.update(repr(pair).encode())
    for split, names in sorted(record.training.splits.items()):
        for name in names:
            digest.update(repr((split, name)).encode())
    return Measured(error, (record.training.config.weight_map, digest.digest()))
