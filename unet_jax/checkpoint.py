"""Checkpoints: a folder for each step, with all that prediction and going on need.

    checkpoints/000400/params/        the network's parameters (Orbax)
    checkpoints/000400/opt_state/     the optimiser's state (Orbax)
    checkpoints/000400/checkpoint.json   configuration, normalisation, class names, versions, ...
    checkpoints/000400/sha256.json       the other files' digests, since Orbax does not check them

A folder appears under its name when it is complete. Nothing in it is ever executed.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.model import Model
from unet_jax.network import UNet, init_params
from unet_jax.training import TrainState

_DESCRIPTION = "checkpoint.json"
_DIGESTS = "sha256.json"


def save(workdir: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Writes the checkpoint of a step, then removes those that are neither best nor latest.

    Args:
      workdir: the run's folder.
      state: what to save; `description["step"]` is its step.
      description: JSON values, of which `load` needs `model` (the fields of `UNet`), `channels`,
        `scale` and `percentiles`; `validation["loss"]`, where there is one, decides which step is
        best.
    """
    folder = _step_folder(workdir, description["step"])
    for leftover in folder.parent.glob("*.*"):  # of a kill
        shutil.rmtree(leftover)
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(parents=True)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished.absolute() / "params", state.params)
            checkpointer.save(unfinished.absolute() / "opt_state", state.opt_state)
            checkpointer.wait_until_finished()
    except ValueError as error:  # a full disk, for example
        raise RunFailed(f"{folder}: cannot be saved ({one_line(error)}).") from error
    (unfinished / _DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    digests = {
        file.relative_to(unfinished).as_posix(): _digest(file)
        for file in sorted(unfinished.rglob("*"))
        if file.is_file()
    }
    (unfinished / _DIGESTS).write_text(json.dumps(digests, indent=1) + "\n")
    _remove(folder)
    unfinished.rename(folder)

    kept = {best_step(workdir), max(saved_steps(workdir))}
    for step in saved_steps(workdir):
        if step not in kept:
            _remove(_step_folder(workdir, step))


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a complete checkpoint, ascending."""
    folders = (workdir / "checkpoints").glob("*/" + _DIGESTS)
    return sorted(int(f.parent.name) for f in folders if f.parent.name.isdecimal())


def describe(workdir: Path, step: int) -> dict[str, Any]:
    """The description that was saved with a step.

    Raises:
      InputError: it is not what was saved.
    """
    folder = _step_folder(workdir, step)
    _verify(folder, [_DESCRIPTION])
    return json.loads((folder / _DESCRIPTION).read_text())


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
    _verify(folder)
    return TrainState(
        step=jnp.int32(step),
        params=_restore(folder / "params", like.params),
        opt_state=_restore(folder / "opt_state", like.opt_state),
    )


def load(workdir: str | Path, step: str | int = "best") -> Model:
    """The trained model in a run's folder; of a cross-validation, the ensemble of its folds.

    Args:
      workdir: what was given to `train.py --workdir`.
      step: "best" by validation, "latest", or the number of a step that was kept.

    Raises:
      InputError: no checkpoint there, or none of that step, or one that cannot be read; a fold is
        missing.
    """
    return ensemble(load_members(Path(workdir), step))


def load_members(workdir: Path, step: str | int = "best") -> list[Model]:
    """The network of a run, or those of a cross-validation by fold; arguments as of `load`."""
    folds = [f for f in workdir.glob("fold*") if f.name.removeprefix("fold").isdecimal()]
    folds.sort(key=lambda folder: int(folder.name.removeprefix("fold")))
    if not folds:
        return [_load_one(workdir, step)]
    members = [_load_one(folder, step) for folder in folds]
    expected = members[0].description["folds"]
    if len(members) != expected:
        raise InputError(
            f"{workdir}: holds {len(members)} of {expected} folds; train the others first."
        )
    return members


def ensemble(members: list[Model]) -> Model:
    """One model, whose probabilities are the mean of the members'."""
    params = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[m.params for m in members])
    return dataclasses.replace(members[0], params=params)


def _load_one(workdir: Path, step: str | int) -> Model:
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
    folder = _step_folder(workdir, int(step))
    _verify(folder)
    description = json.loads((folder / _DESCRIPTION).read_text())
    network = UNet(**description["model"])
    channels = description["channels"]
    params = jax.eval_shape(lambda key: init_params(key, network, channels), jax.random.key(0))
    params = jax.tree.map(lambda x: x[None], _restore(folder / "params", params))
    percentiles = tuple(description["percentiles"])
    return Model(network, params, channels, description["scale"], percentiles, description)


def _restore(folder, like):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(folder.absolute(), like)
    # Copies of JAX's own: what Orbax returns may lie in its memory, and training donates it.
    return jax.tree.map(jnp.copy, restored)


def _verify(folder: Path, names: list[str] | None = None) -> None:
    """Raises InputError unless the files, all by default, are those that were saved."""
    try:
        digests = json.loads((folder / _DIGESTS).read_text())
        for name in names or {*digests, _DESCRIPTION}:  # never nothing
            if _digest(folder / name) != digests[name]:
                raise ValueError("another SHA-256 than was saved")
    except (OSError, ValueError, KeyError, TypeError) as error:
        damaged = f"{folder}: the checkpoint is damaged ({one_line(error)})"
        raise InputError(f"{damaged}; use another step.") from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    """Removes a step so that a kill on the way leaves nothing that looks complete."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(folder.name + ".removed")))


def _step_folder(workdir, step):
    return workdir / "checkpoints" / f"{step:06d}"
