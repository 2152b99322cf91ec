"""Small files in a folder that may come from a stranger."""

import stat
from pathlib import Path

#: JSON takes 20 times as much memory; a description names all images.
MAX_BYTES = 2**26


def read_small(file: Path, at_most: int = MAX_BYTES) -> bytes:
    """The content of a small regular file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is a link or a pipe (opening a pipe would take forever), or has more bytes than
        `at_most`.
    """
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > at_most:
        raise ValueError(f"{file.name} is not a regular file of at most {at_most:,} bytes")
    return file.read_bytes()
