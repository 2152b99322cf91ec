"""Reading `checkpoint.json`, which may come from a stranger; `run_record` says what it holds."""

import json
from pathlib import Path

from unet_jax.checkpoint.integrity import UNREADABLE, damaged, read_verified_record
from unet_jax.checkpoint.steps import saved_steps, step_folder
from unet_jax.errors import InputError
from unet_jax.run_record import Record, read_record


def describe(workdir: Path, step: int) -> Record:
    """The record that was saved with a step.

    Raises:
      InputError: it is not what was saved, or not of this program.
    """
    folder = step_folder(workdir, step)
    try:
        values = json.loads(read_verified_record(folder))
    except UNREADABLE as error:
        raise damaged(workdir, step, error) from error
    try:
        return read_record(values)
    except InputError as error:
        raise InputError(f"{folder}: is no checkpoint of this program ({error}).") from error


def best_step(workdir: Path) -> int:
    """The step with the lowest validation loss; the latest, if none has been validated.

    Where a run went on with other data or weights, only the losses since then are compared.
    """
    records = {step: describe(workdir, step) for step in saved_steps(workdir)}
    latest = max(records)
    losses = {
        step: record.validation["loss"]
        for step, record in records.items()
        if record.validation and _measure(record) == _measure(records[latest])
    }
    return min(losses, key=losses.__getitem__) if losses else latest


def _measure(record: Record):
    """The images and weights that a validation loss is of."""
    training = record.training
    return training and (training.config.weight_map, training.data, training.splits)
