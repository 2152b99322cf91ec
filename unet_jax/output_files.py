"""Output files appear under their names when they are complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from unet_jax.errors import InputError


@contextlib.contextmanager
def complete(file: Path) -> Iterator[Path]:
    """Where to write what gets the name `file` at the end of the block, at once and whole.

    An error in the block, or a kill, leaves `file` as it was.
    """
    # The suffix tells the format; another process may write the same file.
    unfinished = file.with_name(f".unfinished-{os.getpid()}-{file.name}")
    try:
        yield unfinished
        with unfinished.open("rb+") as written:
            os.fsync(written.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def writable_folder(folder: Path, names: tuple[str, ...], overwrite: bool) -> Path:
    """The folder, made if need be, once it is sure that files of these names can be written.

    Raises:
      InputError: one of them is there and may not be overwritten, or the folder is not writable.
    """
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise InputError(f"{folder / name}: is there already; --overwrite replaces it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to.")
    return folder
