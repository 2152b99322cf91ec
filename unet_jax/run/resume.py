"""Resuming a run: exactly as it was, except for changes that the user has allowed by name."""

import logging
import reprlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from unet_jax import checkpoint
from unet_jax.errors import InputError
from unet_jax.files.output import lock, probe
from unet_jax.run.processes import writes
from unet_jax.run_record import Record
from unet_jax.train_step import TrainState

logger = logging.getLogger("unet_jax")

# Parts of a record that make it the same run.
_COMPARED = ("config", "channels", "fold", "folds", "splits", "data")
_STEPS = "config.train.steps"
_COLOURS = "config.class_colours"  # of pictures only
# Differences that are told one by one.
_SHOWN = 5


def resume_or_start(
    workdir: Path, state: TrainState, record: Record, allowed: Collection[str]
) -> TrainState:
    """The latest state of the same run in `workdir`, or `state` after creating the folder.

    Steps that a kill left unfinished are removed, which is reported.

    Args:
      workdir: the run's folder.
      state: the state that a new run begins with.
      record: of the run that is about to start.
      allowed: keys such as "config.augmentation.shift", or their beginnings such as "data", that
        may differ from those of the run so far. More steps and other colours are always allowed.

    Raises:
      InputError: there is another run, with a line for each difference; the checkpoint is damaged;
        the folder cannot be written to.
    """
    steps = checkpoint.saved_steps(workdir)
    changes = []
    if steps:
        checkpoint.best_step(workdir)  # every save asks for it, and must not fail then
        saved = checkpoint.describe(workdir, steps[-1])
        changes = _allowed_changes(workdir, saved.to_json(), record.to_json(), allowed)
        if record.training and steps[-1] > record.training.config.train.steps:
            raise InputError(
                f"{workdir}: this run is already at step {steps[-1]}; give at least as many "
                "--config.train.steps."
            )
        state = checkpoint.restore(workdir, steps[-1], state)
    if writes():
        _take(workdir, steps, size=2 * sum(x.nbytes for x in jax.tree.leaves(state)))
    if steps:
        logger.info("Continuing after step %d.", steps[-1])
    for key, before, now in changes:
        logger.info("  with %s = %s instead of %s", key, _short(now), _short(before))
    return state


def _take(workdir: Path, steps: list[int], size: int) -> None:
    """Reserves the folder for this run alone, after checking that it has room for `size` bytes."""
    probe(workdir, size)
    lock(workdir)
    if checkpoint.saved_steps(workdir) != steps:
        raise InputError(
            f"{workdir}: another run has just written to it; run the same command again."
        )
    for folder in checkpoint.remove_unfinished(workdir):
        logger.info("%s: removed an incomplete save.", folder)


def _allowed_changes(workdir, saved, record, allowed) -> list[tuple[str, Any, Any]]:
    changes: list[tuple[str, Any, Any]] = []
    refused: list[tuple[str, Any, Any]] = []
    for part in _COMPARED:
        for change in _differences(part, saved.get(part), record[part]):
            key, before, now = change
            longer = key == _STEPS and now > before
            wanted = any(key == a or key.startswith(a + ".") for a in allowed)
            (changes if longer or wanted or key == _COLOURS else refused).append(change)
    lines = [
        f"{workdir} holds a run with {key} = {_short(before)}, not {_short(now)}; give another "
        f"--workdir, or --allow_change={key if key.startswith('config') else key.split('.')[0]}."
        for key, before, now in refused
    ]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"{workdir}: {len(lines) - _SHOWN} more differences of this kind."]
    if lines:
        raise InputError(*lines)
    return changes


def _differences(key: str, before, now) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield key, before, now


def _short(value) -> str:
    return "nothing" if value in (None, []) else reprlib.repr(value)
