"""Output files appear under their names when they are complete."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def complete(file: Path) -> Iterator[Path]:
    """Where to write what gets the name `file` at the end of the block, at once and whole.

    An error in the block, or a kill, leaves `file` as it was.
    """
    unfinished = file.with_name(f".unfinished-{file.name}")  # the suffix tells the format
    try:
        yield unfinished
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
