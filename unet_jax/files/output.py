"""Output files appear under their names once complete; only one process writes to a folder."""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from unet_jax.errors import InputError

# Of the folders that this process writes to, by the thread that does.
_locks: dict[tuple[int, Path], FileLock] = {}


@contextlib.contextmanager
def complete(file: Path) -> Iterator[Path]:
    """Where to write a file that gets the name `file` at the end of the block, in one step.

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
        # Windows removes nothing that is still open, as after an error; `lock` does it later.
        with contextlib.suppress(PermissionError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def complete_text(file: Path, *, newline: str | None = None) -> Iterator[TextIO]:
    """As `complete`, opened for UTF-8 text; "?" replaces what is not text, as in file names."""
    with (
        complete(file) as unfinished,
        unfinished.open("w", newline=newline, encoding="utf-8", errors="replace") as opened,
    ):
        yield opened


def probe(folder: Path, size: int) -> None:
    """Makes the folder; InputError if it cannot be written to, or has no room for `size` bytes."""
    trial = folder / f".probe-{uuid.uuid4().hex}"  # other processes may do the same
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror}).") from None
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"{folder}: has {free:,} bytes of free space, expected {size:,} for the new files."
        )


def lock(folder: Path) -> None:
    """Keeps other processes from writing to the folder; removes what a kill left there.

    The lock ends with the enclosing `unlocking` function, or with the process, killed or not.

    Raises:
      InputError: another process writes to it.
    """
    key = threading.get_ident(), folder.resolve()
    if key not in _locks:
        lock = FileLock(folder / ".lock", fallback_to_soft=False, thread_local=False)
        try:
            lock.acquire(timeout=0)
            _locks[key] = lock
        except (Timeout, PermissionError):  # another user's lock cannot even be opened
            raise InputError(f"{folder}: another run is writing to it.") from None
        except OSError:
            pass  # some network file systems have no locks
    for leftover in folder.glob(".unfinished-*"):
        leftover.unlink()


@contextlib.contextmanager
def unlocking() -> Iterator[None]:
    """Releases the locks taken in the block, or in the function it decorates, at its end."""
    before = set(_locks)
    try:
        yield
    finally:
        for key in _locks.keys() - before:
            if key[0] != threading.get_ident():
                continue
            lock = _locks.pop(key)
            # Windows removes no file that is open, but does so in `release`.
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()


def writable_folder(folder: Path, names: tuple[str, ...], overwrite: bool) -> Path:
    """The folder, created if necessary, after checking that files of these names can be written.

    Raises:
      InputError: one of them exists and may not be overwritten, or the folder is not writable.
    """
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise InputError(f"{folder / name}: exists already; use --overwrite to replace it.")
    probe(folder, 0)
    return folder
