"""Divides examples at random into those for training, validation and test."""

import logging
import re

import numpy as np

from unet_jax.errors import InputError, listed
from unet_jax.example import IGNORED, Example
from unet_jax.files.names import stem_and_page
from unet_jax.unread import Examples, Unread, chosen, names_of

logger = logging.getLogger("unet_jax")

_LEAST = 32  # pixels of a block that is cut from an image, along its longer side


def split_by_stem(
    examples: Examples, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Examples]:
    """Splits examples at random so that the pages of a file stay together.

    The pages of a single file are divided into three blocks of neighbours: training, validation,
    test. If it has fewer than three pages, or if there are two files, each page is cut like this
    along its longer side. If training, validation or test would have no cell, a file is swapped for
    one with cells. The order of the examples does not matter.

    Args:
      examples: named as by ``read_folder``.
      validation_fraction: share of the files, in (0, 1), rounded to at least one file.
      test_fraction: share of the files, in (0, 1), rounded to at least one file.
      seed: of the shuffle.

    Returns:
      The examples of 'train', 'validation' and 'test', none of them empty; blocks of an image have
      names like ``stem rows 0 to 179``.

    Raises:
      InputError: there are too few files, or too few pixels in the only ones; blocks in which
        nothing is annotated; a fraction or seed out of range.
    """
    if not (0 < validation_fraction < 1 and 0 < test_fraction < 1 and seed >= 0):
        raise InputError(
            f"validation_fraction {validation_fraction}, test_fraction {test_fraction} and "
            f"split_seed {seed}: expected fractions between 0 and 1 and a seed of 0 or more"
        )
    names = names_of(examples)
    files: dict[str, list[int]] = {}
    for number in sorted(range(len(names)), key=lambda number: stem_and_page(names[number])):
        files.setdefault(stem_and_page(names[number])[0], []).append(number)
    pages = [page for file in files.values() for page in file]
    if len(files) == 2 or (len(files) == 1 and len(pages) < 3):
        cut = _cut([examples[p] for p in pages], len(files), validation_fraction, test_fraction)
        return {**cut}
    if len(files) == 1:
        kind, groups = "page(s) of one file", [[page] for page in pages]
    else:
        order = np.random.default_rng(seed).permutation(len(files))
        by_stem = list(files.values())
        kind, groups = "file(s)", [by_stem[index] for index in order]
    parts = _divided(groups, kind, validation_fraction, test_fraction)
    if len(files) > 1:
        _share_cells(parts, examples)
    return {
        name: chosen(examples, [page for group in part for page in group])
        for name, part in parts.items()
    }


def uncut_name(name: str) -> str:
    """The name of the page that a block was cut from; any other name as it is."""
    return re.sub(r" (rows|columns) \d+ to \d+(?=$| page \d+$)", "", name)


def _divided(
    groups: list[list[int]], kind: str, validation_fraction: float, test_fraction: float
) -> dict[str, list[list[int]]]:
    """The groups of each part, in their order; `kind` says what a group is."""
    validation = max(1, round(validation_fraction * len(groups)))
    test = max(1, round(test_fraction * len(groups)))
    train = len(groups) - validation - test
    if train < 1:
        raise InputError(
            f"{len(groups)} {kind} cannot be split into training, validation and test with "
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction}; "
            "expected at least one for each"
        )
    return {
        "train": groups[:train],
        "validation": groups[train : train + validation],
        "test": groups[train + validation :],
    }


def _share_cells(parts: dict[str, list[list[int]]], examples: Examples) -> None:
    """Swaps files so that each part has one with a cell, the first parts first."""

    def has_cell(page: int) -> bool:
        if isinstance(examples, Unread):
            return any(examples.facts[page].pixels[1:-1])
        return bool((examples[page].labels > 0).any())

    def with_cell(part: list[list[int]]) -> list[int]:
        return [i for i, file in enumerate(part) if any(map(has_cell, file))]

    order = list(parts.values())
    for index, part in enumerate(order):
        givers = [
            other
            for i, other in enumerate(order)
            if len(with_cell(other)) > (i < index)  # an earlier one keeps its last
        ]
        if givers and not with_cell(part):
            giver = max(reversed(givers), key=lambda part: len(with_cell(part)))
            given = with_cell(giver)[-1]
            part[0], giver[given] = giver[given], part[0]


def _cut(
    pages: list[Example], files: int, validation_fraction: float, test_fraction: float
) -> dict[str, list[Example]]:
    """Cuts each page along its longer side into a block for each part, with a warning."""
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for page in pages:
        side = max(page.labels.shape)
        validation, test = (
            max(_LEAST, round(fraction * side)) for fraction in (validation_fraction, test_fraction)
        )
        ends = side - validation - test, side - test, side
        if ends[0] < _LEAST:
            height, width = page.labels.shape
            raise InputError(
                f"{page.name}: {height} x {width} pixels are too few to be cut into training, "
                f"validation and test with validation_fraction {validation_fraction} and "
                f"test_fraction {test_fraction}, expected at least {_LEAST} rows or columns for "
                "each, or at least 3 files"
            )
        for blocks, start, end in zip(parts.values(), (0, *ends), ends, strict=False):
            blocks.append(_block(page, start, end))
    names = {part: listed([block.name for block in blocks], 3) for part, blocks in parts.items()}
    for part, blocks in parts.items():
        if all((block.labels == IGNORED).all() for block in blocks):
            raise InputError(
                f"Nothing is annotated in {names[part]}, the {part} split of {files} file(s);"
                " expected some annotation there, or at least 3 files"
            )
    logger.warning(
        "%d annotated file(s) are too few to be divided, so each image is cut: %s for training,"
        " %s for validation, %s for the test",
        *(files, *names.values()),
    )
    return parts


def _block(page: Example, start: int, end: int) -> Example:
    """The pixels from start to end along the longer side."""
    height, width = page.labels.shape
    kind, block = (
        ("rows", np.s_[start:end]) if height >= width else ("columns", np.s_[:, start:end])
    )
    stem, _ = stem_and_page(page.name)
    name = f"{stem} {kind} {start} to {end - 1}{page.name.removeprefix(stem)}"
    return Example(name, page.image[block], page.labels[block], page.instances[block])
