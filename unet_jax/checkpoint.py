"""Checkpoints: a folder for each step, with all that prediction and going on need.

    checkpoints/000400/params/        the network's parameters (Orbax)
    checkpoints/000400/opt_state/     the optimiser's state (Orbax)
    checkpoints/000400/checkpoint.json   configuration, normalisation, class names, versions, ...

A folder appears under its name when it is complete. Nothing in it is ever executed.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from unet_jax.errors import InputError
from unet_jax.model import Model
from unet_jax.network import UNet, init_params
from unet_jax.training import TrainState

_DESCRIPTION = "checkpoint.json"


def save(workdir: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Writes the checkpoint of a step, then removes those that are neither best nor latest.

    Args:
      workdir: the run's folder.
      state: what to save; `description["step"]` is its step.
      description: JSON values, of which `load` needs `model` (the fields of `UNet`), `channels` and
        `percentiles`; `validation["loss"]`, where there is one, decides which step is best.
    """
    folder = _step_folder(workdir, description["step"])
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(unfinished.absolute() / "params", state.params)
        checkpointer.save(unfinished.absolute() / "opt_state", state.opt_state)
        checkpointer.wait_until_finished()
    (unfinished / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)

    kept = {best_step(workdir), max(saved_steps(workdir))}
    for step in saved_steps(workdir):
        if step not in kept:
            shutil.rmtree(_step_folder(workdir, step))


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    folders = (workdir / "checkpoints").glob("*/" + _DESCRIPTION)
    return sorted(int(f.parent.name) for f in folders if f.parent.name.isdecimal())


def describe(workdir: Path, step: int) -> dict[str, Any]:
    """The description that was saved with a step."""
    file = _step_folder(workdir, step) / _DESCRIPTION
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a readable checkpoint description ({error}).") from None


def best_step(workdir: Path) -> int:
    """The step with the lowest validation loss; the latest, if none has been validated."""
    losses = {}
    for step in saved_steps(workdir):
        validation = describe(workdir, step)["validation"]
        if validation is not None:
            losses[step] = validation["loss"]
    return min(losses, key=losses.get) if losses else max(saved_steps(workdir))


def restore(workdir: Path, step: int, like: TrainState) -> TrainState:
    """The state saved at a step, with the structure, shapes and dtypes of `like`."""
    folder = _step_folder(workdir, step)
    return TrainState(
        step=jax.numpy.int32(step),
        params=_restore(folder / "params", like.params),
        opt_state=_restore(folder / "opt_state", like.opt_state),
    )


def load(workdir: str | Path, step: str | int = "best") -> Model:
    """The trained model in a run's folder.

    Args:
      workdir: what was given to `train.py --workdir`.
      step: "best" by validation, "latest", or the number of a step that was kept.

    Raises:
      InputError: no checkpoint there, or none of that step, or one that cannot be read.
    """
    workdir = Path(workdir)
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(
            f"{workdir}: no checkpoint in this folder; give the --workdir of a training run."
        )
    if step == "best":
        step = best_step(workdir)
    elif step == "latest":
        step = steps[-1]
    elif not str(step).isdecimal() or int(step) not in steps:
        kept = ", ".join(map(str, steps))
        raise InputError(f"{workdir}: no step {step}; there are: best, latest, {kept}.")
    description = describe(workdir, int(step))
    try:
        network = UNet(**description["model"])
        channels = description["channels"]
        percentiles = tuple(description["percentiles"])
    except (KeyError, TypeError) as error:
        file = _step_folder(workdir, int(step)) / _DESCRIPTION
        raise InputError(f"{file}: not a description of a U-Net ({error}).") from None
    params = jax.eval_shape(lambda key: init_params(key, network, channels), jax.random.key(0))
    params = _restore(_step_folder(workdir, int(step)) / "params", params)
    return Model(network, params, channels, percentiles, description)


def _restore(folder, like):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=device), like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(folder.absolute(), like)
        except (ValueError, KeyError, TypeError, OSError) as error:
            # Orbax describes every array of both sides; the first line says what kind of thing.
            first = next((line for line in str(error).splitlines() if line.strip()), "damaged")
            raise InputError(f"{folder}: cannot be restored ({first[:200]}).") from None


def _step_folder(workdir, step):
    return workdir / "checkpoints" / f"{step:06d}"
