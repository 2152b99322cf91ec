"""The pixels of a folder's files: in memory, or read again each time if there are too many."""

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from unet_jax.errors import InputError, Problems
from unet_jax.files.decoding import notice
from unet_jax.files.images import check_grey_values, is_grey, read_image, read_mask
from unet_jax.hardware import host_memory_bytes
from unet_jax.unread import in_threads

logger = logging.getLogger("unet_jax")

_MANY = 1000  # files, which take some seconds
_Look = TypeVar("_Look")


class Pixels(Mapping[str, np.ndarray]):
    """An array for each file by its stem, number [pages, H, W, C] or int32 [pages, H, W]."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        kept: Mapping[str, np.ndarray] | None = None,
    ):
        """Arrays of these shapes; if none are kept, each is read by its stem when it is needed."""
        self.shapes, self._read, self._kept = shapes, read, kept
        # Each page of a stack is asked for alone; threads would decode the same stack at once.
        self._read_stack, self._one_reads = functools.lru_cache(2)(read), threading.Lock()

    @property
    def in_memory(self) -> bool:
        """Whether all arrays are in memory."""
        return self._kept is not None

    def __getitem__(self, stem: str) -> np.ndarray:
        """The array of one file."""
        if self._kept is not None:
            return self._kept[stem]
        if self.shapes[stem][0] == 1:
            return self._read(stem)
        with self._one_reads:
            return self._read_stack(stem)

    def __contains__(self, stem: object) -> bool:
        """Whether there is such a file, without reading it."""
        return stem in self.shapes

    def __iter__(self) -> Iterator[str]:
        """The stems."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """The number of files."""
        return len(self.shapes)


def bytes_in_training(pixels: int, channels: int, itemsize: int) -> int:
    """Bytes that images take: stored and normalised pixels, labels and cells twice, weights."""
    return pixels * (channels * (itemsize + 4) + 2 * 8 + 4)


def memory_for_images() -> int:
    """Bytes; if images need more, each is read when a training step sees it."""
    return host_memory_bytes() // 4


class _Picture(NamedTuple):
    shape: tuple[int, ...]
    is_grey: bool
    problem: InputError | None


def read_pictures(
    files: Mapping[str, Path],
    source: str | os.PathLike,
    channels: int | None,
    problems: Problems,
    memory: float = np.inf,
) -> Pixels:
    """Images [pages, H, W, C], with the same C for all; without those that have problems.

    Grey images stored as RGB are read as one channel if all RGB images are grey, with a warning:
    if one image is coloured, all keep three channels.

    Args:
      files: by stem.
      source: where they come from, for the warning.
      channels: the number that a trained network takes; None = that of the first image.
      problems: where problems are noted.
      memory: bytes; images that would take more in training are not kept.
    """

    def look(path: Path, picture: np.ndarray) -> _Picture:
        problem = None
        try:
            check_grey_values(path, picture)
        except InputError as error:
            problem = error
        return _Picture(picture.shape, is_grey(picture), problem)

    looks, kept = _read_all(files, read_image, look, problems, memory)
    rgb = [look.is_grey for look in looks.values() if look.shape[-1] == 3]
    as_one = channels in (None, 1) and bool(rgb) and all(rgb)
    if as_one:
        logger.warning("%s: R, G and B are equal and are read as one channel", source)
    reason = "that the network takes"
    shapes = {}
    for stem, (shape, _, problem) in looks.items():
        found = 1 if as_one and shape[-1] == 3 else shape[-1]
        shapes[stem] = (*shape[:-1], found)
        if channels is None:
            channels, reason = found, f"as in {files[stem].name}"
        with problems.collected():
            if found != channels:
                raise InputError(
                    f"{files[stem]}: has {found} channel(s), expected {channels} {reason}"
                )
            if problem:
                raise problem
    if kept is not None:
        kept = {stem: picture[..., : shapes[stem][-1]] for stem, picture in kept.items()}
    return pictures_of(files, shapes, kept)


def pictures_of(
    files: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    kept: Mapping[str, np.ndarray] | None = None,
) -> Pixels:
    """Images of known shapes; if a shape has one channel, the image is grey."""
    return Pixels(shapes, lambda stem: read_image(files[stem])[..., : shapes[stem][-1]], kept)


def read_masks(
    files: Mapping[str, Path], problems: Problems, memory: float
) -> tuple[Pixels, dict[str, dict[int, int]]]:
    """Masks int32 [pages, H, W], without those that have problems, and the count of each number.

    Args:
      files: by stem.
      problems: where problems are noted.
      memory: as for `read_pictures`.
    """

    def look(path: Path, mask: np.ndarray) -> tuple[tuple[int, ...], dict[int, int]]:
        numbers, count = np.unique(mask, return_counts=True)
        return mask.shape, dict(zip(numbers.tolist(), count.tolist(), strict=True))

    looks, kept = _read_all(files, _read_numbers, look, problems, memory)
    shapes = {stem: shape for stem, (shape, _) in looks.items()}
    return masks_of(files, shapes, kept), {stem: counts for stem, (_, counts) in looks.items()}


def masks_of(
    files: Mapping[str, Path],
    shapes: Mapping[str, tuple[int, ...]],
    kept: Mapping[str, np.ndarray] | None = None,
) -> Pixels:
    """Masks of known shapes."""
    return Pixels(shapes, lambda stem: _read_numbers(files[stem]), kept)


def _read_numbers(path: Path) -> np.ndarray:
    """int32 [pages, H, W]."""
    mask = read_mask(path)
    if is_grey(mask):
        notice(path.parent, "R, G and B are equal and are read as one channel")
        mask = mask[..., :1]
    if mask.shape[-1] != 1:
        raise InputError(
            f"{path}: has {mask.shape[-1]} channels, expected one, or three that are equal "
            "(R = G = B)"
        )
    low, high = float(mask.min()), float(mask.max())
    has_fractions = mask.dtype.kind == "f" and (mask % 1 != 0).any()
    if low < -(2**31) or high >= 2**31 or has_fractions:
        remedy = (
            "; if these are probabilities or soft edges, threshold them" if has_fractions else ""
        )
        raise InputError(
            f"{path}: holds mask values from {low:g} to {high:g}, expected whole numbers up to "
            f"{2**31 - 1:,}{remedy}"
        )
    return mask[..., 0].astype(np.int32)


def _read_all(
    files: Mapping[str, Path],
    read: Callable[[Path], np.ndarray],
    look: Callable[[Path, np.ndarray], _Look],
    problems: Problems,
    memory: float,
) -> tuple[dict[str, _Look], dict[str, np.ndarray] | None]:
    """The facts about each file, and the pixels of all files, None if they exceed the memory.

    Files that cannot be read are left out.
    """

    def first(path: Path) -> tuple[_Look, np.ndarray] | InputError:
        try:
            pixels = read(path)
            return look(path, pixels), pixels
        except InputError as error:
            return error

    looks: dict[str, _Look] = {}
    kept: dict[str, np.ndarray] = {}
    needed = 0
    results = in_threads(first, files.values())
    # Not by its `delay`: a bar that is still waiting stands before notices and is never cleared.
    few = len(files) < _MANY
    bar = tqdm(results, "Looking at files", len(files), unit="file", leave=False, disable=few)
    for stem, result in zip(files, bar, strict=True):
        with problems.collected():
            if isinstance(result, InputError):
                raise result
            looks[stem], pixels = result
            channels = pixels.shape[3] if pixels.ndim == 4 else 1
            needed += bytes_in_training(pixels.size // channels, channels, pixels.itemsize)
            kept[stem] = pixels
        if needed > memory:
            kept.clear()
    return looks, kept if needed <= memory else None
