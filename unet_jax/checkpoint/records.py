"""Reading `checkpoint.json`, which may come from a stranger; `run_record` says what it holds."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from unet_jax.checkpoint.integrity import UNREADABLE, damaged, read_verified_record
from unet_jax.checkpoint.steps import RECORD, saved_steps, step_folder
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


def best_step(workdir: Path, saved: Record | None = None) -> int:
    """The step with the lowest validation loss; the latest, if none has been validated.

    Where a run went on with other data or weights, only the losses since then are compared.

    Args:
      workdir: the run's folder.
      saved: the record of a step that this process has just saved, which need not be read.
    """
    measured = {
        step: _measured(saved)
        if saved and step == saved.step
        else _measured_before(workdir, step, _changed(step_folder(workdir, step) / RECORD))
        for step in saved_steps(workdir)
    }
    latest = max(measured)
    losses = {
        step: loss
        for step, (loss, of) in measured.items()
        if loss is not None and of == measured[latest][1]
    }
    return min(losses, key=losses.__getitem__) if losses else latest


@lru_cache(maxsize=4)
def _measured_before(workdir: Path, step: int, changed: int) -> tuple[float | None, object]:
    """Read once until it changes: with the names of many images, records are large."""
    return _measured(describe(workdir, step))


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:  # who reads it will say so
        return 0


def _measured(record: Record) -> tuple[float | None, object]:
    """The validation loss, and of what weights and images it is.

    Of the images a digest: with their names, each step would hold megabytes of many of them.
    """
    loss = record.validation["loss"] if record.validation else None
    if not record.training:
        return loss, None
    images = json.dumps([record.training.data, record.training.splits], sort_keys=True)
    digest = hashlib.sha256(images.encode()).hexdigest()
    return loss, (record.training.config.weight_map, digest)
