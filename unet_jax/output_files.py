"""Output files appear under their names when they are complete."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
