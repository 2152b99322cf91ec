"""Loading of checkpoints: a trained model for prediction, a state to continue training from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from unet_jax.checkpoint.arrays import read_arrays
from unet_jax.checkpoint.integrity import files_of, verified
from unet_jax.checkpoint.records import best_step, describe
from unet_jax.checkpoint.steps import own, saved_steps
from unet_jax.errors import InputError
from unet_jax.model import Model
from unet_jax.network import init_params
from unet_jax.pretrained import NETWORKS, run_folder
from unet_jax.train_step import TrainState

# Parameters are hardly compressible: arrays larger than this many times their files are made up.
_MAX_RATIO = 100


def restore(workdir: Path, step: int, like: TrainState) -> TrainState:
    """The state saved at a step, with the structure, shapes and dtypes of `like`.

    If no average was saved, it begins with the parameters; if `like` has none, it is ignored.

    Raises:
      InputError: the checkpoint is damaged, or belongs to another network.
    """
    folder = verified(workdir, step)
    result, unaveraged = folder / "params", folder / "unaveraged"
    return TrainState(
        step=jnp.int32(step),
        params=read_arrays(unaveraged if unaveraged.exists() else result, like.params),
        opt_state=read_arrays(folder / "opt_state", like.opt_state),
        average=like.average and read_arrays(result, like.params),
    )


def load(workdir: str | Path, step: str | int = "best") -> Model:
    """The trained model in a run's folder; for a cross-validation, the ensemble of its folds.

    Args:
      workdir: the folder given to `train.py --workdir`, or a network of the package, see
        `unet_jax.pretrained`.
      step: "best" by validation, "latest", or the number of a step that was kept.

    Raises:
      InputError: there is no checkpoint, or none of that step, or it cannot be read; a fold is
        missing.
    """
    return ensemble(load_members(workdir, step))


def load_members(workdir: str | Path, step: str | int = "best") -> list[Model]:
    """The network of a run, or those of a cross-validation by fold; arguments as for `load`."""
    workdir = run_folder(workdir)
    folds = [own(f) for f in workdir.glob("fold*") if f.name.removeprefix("fold").isdecimal()]
    folds.sort(key=lambda folder: int(folder.name.removeprefix("fold")))
    if not folds:
        return [_load_one(workdir, step)]
    members = [_load_one(folder, step) for folder in folds]
    expected = members[0].training.folds if members[0].training else 1
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
    while True:
        number = _number_of(workdir, step)
        try:
            return _load_step(workdir, number)
        except Exception:
            # A run that goes on may have replaced it meanwhile by a better or later one.
            if step not in ("best", "latest") or number in saved_steps(workdir):
                raise


def _number_of(workdir: Path, step: str | int) -> int:
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(
            f"{workdir}: no checkpoint in this folder; give the --workdir of a training run, or a "
            f"network that comes with the package: {', '.join(NETWORKS)}."
        )
    if step == "best":
        return best_step(workdir)
    if step == "latest":
        return steps[-1]
    if not str(step).isdecimal() or int(step) not in steps:
        kept = ", ".join(map(str, steps))
        raise InputError(f"{workdir}: has no step {step}; the steps are best, latest, {kept}.")
    return int(step)


def _load_step(workdir: Path, step: int) -> Model:
    folder = verified(workdir, step)
    record = describe(workdir, step)
    network, channels = record.network, record.channels
    params = jax.eval_shape(lambda key: init_params(key, network, channels), jax.random.key(0))
    _check_plausible(folder / "params", params)
    params = jax.tree.map(lambda x: x[None], read_arrays(folder / "params", params))
    return Model(network, params, channels, record.scale, record.percentiles, record)


def _check_plausible(folder: Path, params: dict[str, Any]) -> None:
    """InputError if there are more parameters than the files can hold."""
    declared = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    held = sum(file.stat().st_size for file in files_of(folder).values())
    if declared > _MAX_RATIO * held:
        raise InputError(
            f"{folder}: declares {declared:,} bytes of parameters, but holds only {held:,}."
        )
