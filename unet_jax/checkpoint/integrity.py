"""How damage is detected: the manifest of a step holds the SHA-256 digests of its files."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import BinaryIO

from unet_jax.checkpoint.steps import MANIFEST, RECORD, saved_steps, step_folder
from unet_jax.errors import InputError, one_line
from unet_jax.files.output import complete
from unet_jax.files.untrusted import read_small

# What comes of reading made-up JSON, or files that are not there.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, RecursionError)
_MOST_LEVELS = 20  # of folders in a step; Orbax makes three
# By the file managers of macOS and Windows.
_LEFT_BEHIND = re.compile(r"\.DS_Store|\._.*|\.AppleDouble|Thumbs\.db|desktop\.ini")


def write_manifest(folder: Path) -> None:
    """Writes the manifest of all files in a step's folder."""
    manifest = {}
    for name, file in files_of(folder).items():
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())  # nor does a power cut leave a manifest without its files
            manifest[name] = hashlib.file_digest(opened, "sha256").hexdigest()
    with complete(folder / MANIFEST) as unfinished:
        text = json.dumps(manifest, indent=1)  # any cut breaks it
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def verify(folder: Path) -> None:
    """Raises one of `UNREADABLE` unless the files of a step are exactly those of its manifest."""
    manifest = json.loads(read_small(folder / MANIFEST))
    if not isinstance(manifest, dict) or RECORD not in manifest:
        raise ValueError(f"{MANIFEST} is not a manifest")
    files = files_of(folder)
    for name in sorted(manifest.keys() ^ files.keys()):
        raise ValueError(f"{name} is missing" if name in manifest else f"{name} was not saved")
    for name, file in files.items():
        with file.open("rb") as opened:
            if _has_holes(opened):
                raise ValueError(f"{name} has holes")
            if hashlib.file_digest(opened, "sha256").hexdigest() != manifest[name]:
                raise ValueError(f"{name} is not what was saved")


def verified(workdir: Path, step: int) -> Path:
    """The folder of a step; InputError unless its files are those that were saved."""
    folder = step_folder(workdir, step)
    try:
        verify(folder)
    except UNREADABLE as error:
        raise damaged(workdir, step, error) from error
    return folder


def read_verified_record(folder: Path) -> bytes:
    """The record of a step, without checking the other files.

    Raises:
      one of `UNREADABLE`: it is not what was saved.
    """
    manifest = json.loads(read_small(folder / MANIFEST))
    text = read_small(folder / RECORD)
    if hashlib.sha256(text).hexdigest() != manifest[RECORD]:
        raise ValueError(f"{RECORD} is not what was saved")
    return text


def manifest_sha256(workdir: Path, step: int) -> str:
    """The digest of a step's manifest, which stands for everything that was saved."""
    return hashlib.sha256(read_small(step_folder(workdir, step) / MANIFEST)).hexdigest()


def damaged(workdir: Path, step: int, reason: Exception) -> InputError:
    """The error for a damaged step, which names the last good one: it is never used silently."""
    folder = step_folder(workdir, step)
    others = (other for other in reversed(saved_steps(workdir)) if other != step)
    good = next((other for other in others if _is_good(step_folder(workdir, other))), None)
    remedy = "no other step is good."
    if good is not None:
        remedy = f"the last good step is {good}; remove the damaged folder to continue from it."
    return InputError(f"{folder}: the checkpoint is damaged ({one_line(reason)}); {remedy}")


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a step by their path in it, without the manifest.

    Those that file managers leave in a folder are not counted, and are never read.

    Raises:
      ValueError: a link, or folders nested deeper than any step is.
    """
    files, level = {}, [folder]
    for _ in range(_MOST_LEVELS):
        below = sorted(
            path
            for there in level
            for path in there.iterdir()
            if not _LEFT_BEHIND.fullmatch(path.name)
        )
        for path in below:
            name = path.relative_to(folder).as_posix()
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{name} is not a regular file")
            if path.is_file() and name != MANIFEST:
                files[name] = path
        level = [path for path in below if path.is_dir()]
        if not level:
            return files
    raise ValueError(f"folders are nested more than {_MOST_LEVELS} deep")


def _is_good(folder: Path) -> bool:
    try:
        verify(folder)
    except UNREADABLE:
        return False
    return True


def _has_holes(opened: BinaryIO) -> bool:
    """Whether an open file has zeros that take no space: there may be terabytes of them to read."""
    try:
        return opened.seek(0, os.SEEK_HOLE) < os.fstat(opened.fileno()).st_size
    except (OSError, AttributeError):  # Windows and some file systems do not tell
        return False
    finally:
        opened.seek(0)
