"""Checkpoints: a folder for each step, with all that prediction and going on need.

    checkpoints/000400/params/        the network's parameters (Orbax)
    checkpoints/000400/opt_state/     the optimiser's state (Orbax)
    checkpoints/000400/checkpoint.json   configuration, normalisation, class names, versions, ...
    checkpoints/000400/sha256.json    the manifest: the other files' digests, written last

A step exists when its manifest does, and is read only if the files are those of the manifest.
Nothing in it is ever executed, and nothing outside its folder is opened.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from unet_jax.configuration import read_configuration
from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.files.output import complete
from unet_jax.files.untrusted import read_small
from unet_jax.model import Model
from unet_jax.network import UNet, init_params
from unet_jax.settings import read
from unet_jax.train_step import TrainState

_DESCRIPTION = "checkpoint.json"
_MANIFEST = "sha256.json"
# Parameters are hardly compressible: arrays larger than this many times their files are made up.
_MAX_RATIO = 100
_MAX_DEPTH = 10
# What `fine_tuning.first_state` records.
_SOURCE = dict(checkpoint=str, step=int, manifest_sha256=str, new_layers=list, seen=list)


class Saver:
    """Saves checkpoints in the background, one at a time, while training goes on.

    Used in a `with` block, whose end waits for the last one.
    """

    def __init__(self, workdir: Path):
        """Saves into the run's folder."""
        self._workdir = workdir
        self._background = ThreadPoolExecutor(1)
        self._saving: Future | None = None

    def __enter__(self):
        """The saver itself."""
        return self

    def __exit__(self, kind, *_):
        """Waits; raises RunFailed if the last save failed, unless another error is on its way."""
        self._background.shutdown()
        if kind is None:
            self.wait()

    def save(self, state: TrainState, description: dict[str, Any]) -> None:
        """Begins to save as `save` does, after the one before; waits only for that and for a copy.

        Raises:
          RunFailed: the one before failed.
        """
        self.wait()
        # Copies: the next step uses up the device's arrays.
        state = jax.tree.map(np.array, state)
        self._saving = self._background.submit(save, self._workdir, state, description)

    def raise_error(self) -> None:
        """Raises RunFailed if a save has failed meanwhile."""
        if self._saving and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits until everything is saved; raises RunFailed if that failed."""
        saving, self._saving = self._saving, None
        if saving:
            saving.result()


def save(workdir: Path, state: TrainState, description: dict[str, Any]) -> None:
    """Writes the checkpoint of a step, then removes those that are neither best nor latest.

    Args:
      workdir: the run's folder.
      state: what to save; `description["step"]` is its step.
      description: JSON values, of which `load` needs `model` (the fields of `UNet`), `channels`,
        `scale` and `percentiles`; `validation["loss"]`, where there is one, decides which step is
        best.

    Raises:
      RunFailed: it cannot be written, or is not finite; the steps before are as they were.
    """
    folder = _step_folder(workdir, description["step"])
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(state)):
        raise RunFailed(f"{folder}: is not saved, the parameters are no longer finite.")
    _remove(folder)
    try:
        folder.mkdir(parents=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.resolve() / "params", state.params)
            checkpointer.save(folder.resolve() / "opt_state", state.opt_state)
            checkpointer.wait_until_finished()
        text = json.dumps(description, indent=1) + "\n"
        (folder / _DESCRIPTION).write_text(text, encoding="utf-8", newline="\n")
        manifest = {}
        for name, file in _files(folder).items():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())  # nor does a power cut leave a manifest without its files
                manifest[name] = hashlib.file_digest(opened, "sha256").hexdigest()
        with complete(folder / _MANIFEST) as unfinished:
            text = json.dumps(manifest, indent=1)  # any cut breaks it
            unfinished.write_text(text, encoding="utf-8", newline="\n")
        _verify(folder)
    except Exception as error:  # of Orbax's threads, many kinds
        _remove(folder)  # so that a full disk has room again
        raise RunFailed(f"{folder}: cannot be saved ({one_line(error)}).") from error

    steps = saved_steps(workdir)
    kept = {best_step(workdir), max(steps)}
    for step in steps:
        if step not in kept:
            _remove(_step_folder(workdir, step))


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    manifests = _steps_folder(workdir).glob("*/" + _MANIFEST)
    return sorted(int(f.parent.name) for f in manifests if f.parent.name.isdecimal())


def remove_unfinished(workdir: Path) -> list[Path]:
    """Removes the steps without a manifest, which a kill left behind; returns their folders."""
    steps = [f for f in _steps_folder(workdir).glob("*") if f.is_dir() and f.name.isdecimal()]
    folders = [folder for folder in steps if not (folder / _MANIFEST).exists()]
    for folder in folders:
        shutil.rmtree(folder)
    return folders


def describe(workdir: Path, step: int) -> dict[str, Any]:
    """The description that was saved with a step.

    Raises:
      InputError: it is not what was saved, or not of this program.
    """
    folder = _step_folder(workdir, step)
    try:
        manifest = json.loads(read_small(folder / _MANIFEST))
        text = read_small(folder / _DESCRIPTION)
        if hashlib.sha256(text).hexdigest() != manifest[_DESCRIPTION]:
            raise ValueError(f"{_DESCRIPTION} is not what was saved")
        description = json.loads(text)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(workdir, step, error) from error
    try:
        if "config" in description:
            config = read_configuration(description["config"]).to_dict()
            description["config"] = json.loads(json.dumps(config))
        _check_description(description)
    except Exception as error:  # made-up values raise many kinds
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{folder}: is no checkpoint of this program ({reason}).") from error
    return description


def manifest_sha256(workdir: Path, step: int) -> str:
    """The digest of a step's list of digests, which stands for all that was saved."""
    return hashlib.sha256(read_small(_step_folder(workdir, step) / _MANIFEST)).hexdigest()


def best_step(workdir: Path) -> int:
    """The step with the lowest validation loss; the latest, if none has been validated.

    Where a run went on with other data or weights, only the losses since then are compared.
    """
    descriptions = {step: describe(workdir, step) for step in saved_steps(workdir)}
    latest = max(descriptions)
    losses = {
        step: description["validation"]["loss"]
        for step, description in descriptions.items()
        if description["validation"] and _same_measure(description, descriptions[latest])
    }
    return min(losses, key=losses.get) if losses else latest


def _same_measure(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the validation losses of two steps are of the same images and weights."""
    weights = [description.get("config", {}).get("weight_map") for description in (a, b)]
    return weights[0] == weights[1] and all(a.get(k) == b.get(k) for k in ("data", "splits"))


def restore(workdir: Path, step: int, like: TrainState) -> TrainState:
    """The state saved at a step, with the structure, shapes and dtypes of `like`.

    Raises:
      InputError: the checkpoint is damaged, or of another network.
    """
    folder = _verified(workdir, step)
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
    folds = [_own(f) for f in workdir.glob("fold*") if f.name.removeprefix("fold").isdecimal()]
    folds.sort(key=lambda folder: int(folder.name.removeprefix("fold")))
    if not folds:
        return [_load_one(workdir, step)]
    members = [_load_one(folder, step) for folder in folds]
    expected = members[0].description.get("folds")
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
    folder = _verified(workdir, int(step))
    description = describe(workdir, int(step))
    network = UNet(**description["model"])
    channels = description["channels"]
    params = jax.eval_shape(lambda key: init_params(key, network, channels), jax.random.key(0))
    _check_plausible(folder / "params", params)
    params = jax.tree.map(lambda x: x[None], _restore(folder / "params", params))
    percentiles = tuple(description["percentiles"])
    return Model(network, params, channels, description["scale"], percentiles, description)


def _check_description(description: dict[str, Any]) -> None:
    """Raises for values that `load` cannot use, and for what it needs and does not find."""
    read(UNet, description["model"], "model")
    low, high = description["percentiles"]
    validation = description["validation"]
    for name, holds in (
        ("channels", type(description["channels"]) is int and 1 <= description["channels"] <= 1000),
        ("scale", 0 < description["scale"] <= 10),
        ("percentiles", 0 <= low <= high <= 100),
        ("validation", validation is None or isinstance(validation["loss"], float)),
    ):
        if not holds:
            raise InputError(f"{name} is {description[name]!r}")
    if _depth(description) > _MAX_DEPTH:
        raise InputError(f"it is nested more than {_MAX_DEPTH} deep")
    if "config" in description:
        _check_run(description)


def _check_run(description: dict[str, Any]) -> None:
    """Raises for values of what training adds that an evaluation cannot use."""
    config, names = description["config"], description["class_names"]
    read_configuration(config)
    data, splits = config["data"], description["splits"]
    source = description.get("started_from")
    for name, holds in (
        ("step", type(description["step"]) is int),
        ("folds", type(description.get("folds", 1)) is int),
        ("config", config["model"] == description["model"]),
        ("config", type(data["source"]) is str and type(data.get("ignore_value", -1)) is int),
        ("class_names", names == config["class_names"] and all(type(n) is str for n in names)),
        ("splits", set(splits) == {"train", "validation", "test"}),
        ("splits", all(type(split) is list for split in splits.values())),
        ("data", type(description.get("data", {})) is dict),
        ("images", type(description.get("images", {})) is dict),
        ("started_from", source is None or {k: type(v) for k, v in source.items()} == _SOURCE),
        ("versions", type(description["versions"]["unet-jax"]) is str),
    ):
        if not holds:
            raise InputError(f"{name} is {description[name]!r}")


def _depth(value) -> int:
    """How often JSON objects and arrays are nested."""
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def _restore(folder: Path, like):
    """The arrays of an Orbax folder with the structure, shapes and dtypes of `like`.

    They are read by TensorStore alone. Orbax's own way is open to more layouts, in which the name
    of an array is the path of its files, and absolute if it likes.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [".".join(map(_entry_name, path)) for path, _ in leaves]
    expected = {name: (x.shape, x.dtype) for name, (_, x) in zip(names, leaves, strict=True)}
    base = {"driver": "file", "path": f"{folder.resolve().as_posix()}/"}
    database = {"driver": "ocdbt", "base": base}
    try:
        store = tensorstore.KvStore.open(database).result()
        keys = [key.decode() for key in store.list().result()]
        found = {
            key.removesuffix("/.zarray"): json.loads(store[key])
            for key in keys
            if key.endswith("/.zarray")
        }
        saved = {name: (tuple(x["shape"]), _declared(x["dtype"])) for name, x in found.items()}
        _check_same_arrays(folder, saved, expected)
        for name, array in found.items():
            # TensorStore makes room for a chunk as large as declared, or seeks billions of them.
            if array["chunks"] != array["shape"]:
                raise ValueError(f"{name} is in chunks of {array['chunks']}")
        arrays = [
            tensorstore.open(
                {
                    "driver": "zarr",
                    "kvstore": database | {"path": f"{name}/"},
                    "fill_missing_data_reads": False,
                }
            )
            .result()
            .read()
            .result()
            for name in names
        ]
    except InputError:
        raise
    except Exception as error:  # a file of another format raises many kinds
        raise InputError(f"{folder}: cannot be read ({one_line(error)}).") from error
    arrays = [jnp.array(a, dtype=x.dtype) for a, (_, x) in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def _declared(saved: str) -> np.dtype:
    """The dtype that an array should have been saved in.

    Earlier versions saved some as float64 where JAX was set to 64 bits (`jax_enable_x64`).
    """
    dtype = np.dtype(saved)
    return np.dtype(np.float32) if dtype == np.float64 else dtype


def _entry_name(entry) -> str:
    """How Orbax calls a key of a dict, a field of a named tuple, an element of a tuple."""
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None))))


def _check_plausible(folder: Path, params) -> None:
    declared = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    held = sum(file.stat().st_size for file in _files(folder).values())
    if declared > _MAX_RATIO * held:
        raise InputError(f"{folder}: declares {declared:,} bytes of parameters and holds {held:,}.")


def _check_same_arrays(folder, saved, expected):
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            found, wanted = (
                "no such array" if name not in arrays else "{} {}".format(*arrays[name])
                for arrays in (saved, expected)
            )
            raise InputError(
                f"{folder}: is of another network: {one_line(name)} is {found}, expected {wanted}."
            )


def _verified(workdir: Path, step: int) -> Path:
    """The folder of a step, whose files are those that were saved; otherwise InputError."""
    folder = _step_folder(workdir, step)
    try:
        _verify(folder)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(workdir, step, error) from error
    return folder


def _verify(folder: Path) -> None:
    manifest = json.loads(read_small(folder / _MANIFEST))
    if not isinstance(manifest, dict) or _DESCRIPTION not in manifest:
        raise ValueError(f"{_MANIFEST} is no manifest")
    files = _files(folder)
    for name in sorted(manifest.keys() ^ files.keys()):
        raise ValueError(f"{name} is missing" if name in manifest else f"{name} was not saved")
    for name, file in files.items():
        with file.open("rb") as opened:
            if _has_holes(opened):
                raise ValueError(f"{name} has holes")
            if hashlib.file_digest(opened, "sha256").hexdigest() != manifest[name]:
                raise ValueError(f"{name} is not what was saved")


def _has_holes(opened) -> bool:
    """Whether zeros of an open file take no space: there can be terabytes of them to read."""
    try:
        return opened.seek(0, os.SEEK_HOLE) < os.fstat(opened.fileno()).st_size
    except (OSError, AttributeError):  # Windows and some file systems do not tell
        return False
    finally:
        opened.seek(0)


def _files(folder: Path) -> dict[str, Path]:
    """The files of a step by their path in it, without the manifest; a link raises ValueError."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{name} is no plain file")
        if path.is_file() and name != _MANIFEST:
            files[name] = path
    return files


def _damaged(workdir: Path, step: int, reason: Exception) -> InputError:
    """The error for a damaged step, which names the last good one: nobody chooses it in silence."""
    folder = _step_folder(workdir, step)
    remedy = "no other step is good."
    for other in reversed(saved_steps(workdir)):
        if other == step:
            continue
        try:
            _verify(_step_folder(workdir, other))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
        remedy = f"the last good step is {other}; remove the damaged folder to go on from it."
        break
    return InputError(f"{folder}: the checkpoint is damaged ({one_line(reason)}); {remedy}")


def _remove(folder: Path) -> None:
    """Removes a step, the manifest first, so that a kill leaves nothing that looks complete."""
    if folder.exists():
        (folder / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _step_folder(workdir, step):
    return _own(_steps_folder(workdir) / f"{step:06d}")


def _steps_folder(workdir):
    return _own(workdir / "checkpoints")


def _own(folder):
    """The folder; InputError for a link: what is elsewhere is neither read nor cleared up."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, expected a folder.")
    return folder
