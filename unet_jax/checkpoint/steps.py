"""The steps of a run that have a checkpoint, and their folders."""

import shutil
from pathlib import Path

from unet_jax.errors import InputError

RECORD = "checkpoint.json"
MANIFEST = "sha256.json"


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint, ascending."""
    manifests = _steps_folder(workdir).glob("*/" + MANIFEST)
    return sorted(int(f.parent.name) for f in manifests if f.parent.name.isdecimal())


def remove_unfinished(workdir: Path) -> list[Path]:
    """Removes steps without a manifest, left behind by a kill; returns their folders."""
    steps = [f for f in _steps_folder(workdir).glob("*") if f.is_dir() and f.name.isdecimal()]
    folders = [folder for folder in steps if not (folder / MANIFEST).exists()]
    for folder in folders:
        shutil.rmtree(folder)
    return folders


def remove_step(folder: Path) -> None:
    """Removes a step, the manifest first, so that a kill leaves nothing that looks complete."""
    if folder.exists():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def step_folder(workdir: Path, step: int) -> Path:
    """The folder in which a step is saved; InputError if a link leads elsewhere."""
    return own(_steps_folder(workdir) / f"{step:06d}")


def own(folder: Path) -> Path:
    """The folder; InputError for a link: nothing elsewhere is read or deleted."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, expected a folder.")
    return folder


def _steps_folder(workdir: Path) -> Path:
    return own(workdir / "checkpoints")
