"""What is known about a folder too large for the memory, kept for the next start."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pooch

from unet_jax.files.output import complete
from unet_jax.unread import Facts

_FORMAT = 2  # another one where the same files would give other facts


@dataclass(frozen=True)
class KnownFolder:
    """What was learnt by reading all files once.

    Attributes:
      shapes: pages, height, width and channels of each image file.
      background: the number in masks that means background.
      facts: about each example.
    """

    shapes: list[tuple[int, ...]]
    background: int
    facts: list[Facts]


def kept_in(files: Iterable[Path], settings: Iterable[Any]) -> Path:
    """The file to keep it in; it changes with the name, size or time of change of any file."""
    digest = hashlib.sha256(json.dumps([_FORMAT, *settings]).encode())
    # An image of OME-Zarr is a folder.
    parts = ([file, *sorted(file.rglob("*"))] if file.is_dir() else [file] for file in files)
    for file in chain.from_iterable(parts):
        digest.update(f"{file.absolute()}\n".encode(errors="surrogateescape"))
        with contextlib.suppress(OSError):  # who reads the file will say it better
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return Path(pooch.os_cache("unet_jax")) / "folders" / f"{digest.hexdigest()}.jsonl"


def load(file: Path) -> KnownFolder | None:
    """What was kept; None if there is nothing."""
    try:
        with file.open(encoding="utf-8") as lines:  # one by one, as they are many
            shapes, background = json.loads(next(lines))
            facts = [_facts(json.loads(line)) for line in lines]
        return KnownFolder([*map(tuple, shapes)], background, facts)
    except (OSError, StopIteration, TypeError, ValueError):
        return None


def save(file: Path, known: KnownFolder) -> None:
    """Keeps it, if the file can be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with complete(file) as unfinished:
            lines = map(json.dumps, [[known.shapes, known.background], *known.facts])
            unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _facts(values: list[Any]) -> Facts:
    name, size, channels, pixels, sha256, image_sha256, seen = values
    return Facts(
        name,
        tuple(size),
        channels,
        tuple(pixels),
        sha256,
        image_sha256,
        seen and _facts([name, *seen[1:]]),  # the same text, not one more
    )
