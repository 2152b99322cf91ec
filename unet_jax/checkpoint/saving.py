"""Saving of checkpoints, in the background while training goes on."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from unet_jax.checkpoint.arrays import write_arrays
from unet_jax.checkpoint.integrity import verify, write_manifest
from unet_jax.checkpoint.records import Measured, best_step, measured_on
from unet_jax.checkpoint.steps import RECORD, remove_step, saved_steps, step_folder
from unet_jax.errors import RunFailed, one_line
from unet_jax.run_record import Record
from unet_jax.train_step import TrainState


class Saver:
    """Saves checkpoints in the background, one at a time, while training goes on.

    Used in a `with` block, which waits for the last one at its end.
    """

    def __init__(self, workdir: Path):
        """Saves into the run's folder."""
        self._workdir = workdir
        self._background = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        self._measured: dict[int, Measured] = {}

    def __enter__(self) -> Self:
        """The saver itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits; raises RunFailed if the last save failed, unless another error is being raised."""
        self._background.shutdown()
        if kind is None:
            self.wait()

    def save(self, state: TrainState, record: Record) -> None:
        """Begins to save, see the function `save`, after waiting for the previous save.

        Raises:
          RunFailed: the previous save failed.
        """
        self.wait()
        # A copy, which the device makes: the next step uses up the state.
        self._saving = self._background.submit(
            save, self._workdir, _copy(state), record, self._measured
        )

    def raise_error(self) -> None:
        """Raises RunFailed if a save has failed in the meantime."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved; raises RunFailed if that failed."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()


_copy = jax.jit(partial(jax.tree.map, jnp.copy))


def save(
    workdir: Path,
    state: TrainState,
    record: Record,
    measured: dict[int, Measured] | None = None,
) -> None:
    """Writes the checkpoint of a step, then removes those that are neither best nor latest.

    Args:
      workdir: the run's folder.
      state: the state to save, at the record's step.
      record: its validation error, if there is one, decides which step is best.
      measured: the errors of earlier steps, see `best_step`; this step's is added.

    Raises:
      RunFailed: it cannot be written, or is not finite; earlier steps are left as they were.
    """
    folder = step_folder(workdir, record.step)
    state = jax.device_get(state)
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(state)):
        raise RunFailed(f"{folder}: not saved because the parameters are no longer finite.")
    remove_step(folder)
    try:
        folder.mkdir(parents=True)
        write_arrays(folder / "params", state.result)
        if state.average is not None:
            write_arrays(folder / "unaveraged", state.params)
        write_arrays(folder / "opt_state", state.opt_state)
        with (folder / RECORD).open("w", encoding="utf-8", newline="\n") as file:
            json.dump(record.to_json(), file, indent=1)  # in pieces: it may name 100,000 images
            file.write("\n")
        write_manifest(folder)
        verify(folder)
    except Exception as error:  # of Orbax's threads, many kinds
        remove_step(folder)  # so that a full disk has room again
        raise RunFailed(f"{folder}: cannot be saved ({one_line(error)}).") from error

    measured = {} if measured is None else measured
    measured[record.step] = measured_on(record)
    steps = saved_steps(workdir)
    kept = {best_step(workdir, measured), max(steps)}
    for step in steps:
        if step not in kept:
            remove_step(step_folder(workdir, step))
