"""What the numbers in masks mean, and what they may mean if they break their rule."""

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_jax.data.pixels import Pixels
from unet_jax.errors import InputError, listed

logger = logging.getLogger("unet_jax")

MASK_RULES = ("binary", "classes", "instances")
_MINUS_ONE = ("", "background", "ignored")
_FEW = 20  # classes that masks may be thought to have
_MARKS = (255, 65535)  # what programs write where nothing is annotated
# Pieces are looked for in the middle of some pages only: that takes less than a second.
_PAGES, _SIDE = 20, 1000
_SPECK = 5  # pixels; fewer are connected by chance


def check_settings(mask_rule: str, ignore_value: int, minus_one: str) -> None:
    """Refuses settings that make no sense, whatever the masks hold; see ``read_folder`` for them.

    Raises:
      InputError: a setting is unknown, or the background would be ignored.
    """
    if mask_rule not in MASK_RULES:
        raise InputError(f"mask_rule is {mask_rule!r}, expected one of {', '.join(MASK_RULES)}")
    if minus_one not in _MINUS_ONE:
        raise InputError(f"minus_one is {minus_one!r}, expected 'background', 'ignored' or ''")
    if ignore_value == 0 and mask_rule != "classes" and minus_one != "background":
        raise InputError(
            f"ignore_value is 0, which is the background under mask_rule {mask_rule!r}; expected"
            " another value, or mask_rule 'classes', whose classes then begin at 1"
        )


def check_masks(
    files: Mapping[str, Path],
    masks: Pixels,
    pixels: Mapping[str, Mapping[int, int]],
    folder: str | os.PathLike,
    *,
    mask_rule: str,
    classes: int,
    ignore_value: int,
    minus_one: str,
) -> int:
    """Refuses masks that break their rule, or look as if another rule were meant.

    Args:
      files: the masks' files by stem.
      masks: int32 [pages, H, W] by stem.
      pixels: the number of pixels of each value, by stem.
      folder: where the masks are, for messages.
      mask_rule: what the numbers mean; for this and the following see ``read_folder``.
      classes: the number of classes, background included.
      ignore_value: the number of pixels that do not count.
      minus_one: what -1 means.

    Returns:
      The number of the background, -1, 0 or 1.

    Raises:
      InputError: with the other rules that the masks may follow, the most plausible first.
    """
    ignored = ignored_numbers(ignore_value, minus_one)
    counts = {
        stem: {value: n for value, n in of_mask.items() if value not in ignored}
        for stem, of_mask in pixels.items()
    }
    values: set[int] = set().union(*counts.values())
    background = 1 if ignore_value == 0 and mask_rule == "classes" else 0
    if minus_one == "background" and -1 in values:
        background = -1
    if not values:
        return background

    fits = _fits(mask_rule, values, classes, background)
    top = max(values)
    from_one = background == 0 and min(values) == 1 < top < _FEW and ignore_value == -1
    if fits and mask_rule != "instances":
        _notice_classes(folder, values, mask_rule, background, from_one)
        return background

    misfit = _misfit(files, counts, folder, mask_rule, classes, background)
    if min(values) == -1 and background != -1:
        ways = ["'background' (0 is then the first cell, or class 1)", "'ignored'"]
        raise InputError(
            f"{misfit}; set config.data.minus_one to say what -1 means:"
            f" {' or '.join(ways[:: -1 if 0 in values else 1])}"
        )
    no_cells = [*ignored, background]
    _refuse_soft_edges(files, masks, counts, no_cells)
    alone = [numbers.keys() - {background} for numbers in counts.values()]
    each_one = all(len(numbers) <= 1 for numbers in alone)
    if not fits and each_one and min(values) >= background and len(set().union(*alone)) > 1:
        raise InputError(
            f"{misfit}: each mask holds one number besides {background}, but not the same one in"
            " all; write the same number in all, and read them as 'binary'"
        )
    connected = _are_connected(masks, masks, no_cells)
    as_classes = mask_rule == "classes" and top == classes
    if from_one and (top == 2 or as_classes or not connected):
        number = f" and {top} classes" if top != classes else ""
        raise InputError(
            f"{misfit}: no mask holds 0, the background; all masks fit 'classes' with ignore_value"
            f" 0{number}"
        )
    if not fits:
        remedies = _remedies(values, mask_rule, classes, background, ignore_value, connected)
        raise InputError(f"{misfit}{_advice(remedies, values, connected)}")
    _notice_cells(folder, values, connected, each_one)
    return background


def ignored_numbers(ignore_value: int, minus_one: str) -> list[int]:
    """The mask values that do not count; an ``ignore_value`` of -1 is none."""
    return [-1] * (minus_one == "ignored") + [ignore_value] * (ignore_value != -1)


def _fits(rule: str, values: Collection[int], classes: int, background: int) -> bool:
    """Whether all of these numbers mean something under the rule."""
    if min(values, default=background) < background:
        return False
    return {
        "binary": len(set(values) - {background}) <= 1,
        "classes": max(values, default=background) - background < classes,
        "instances": True,
    }[rule]


def _misfit(
    files: Mapping[str, Path],
    counts: Mapping[str, Mapping[int, int]],
    folder: str | os.PathLike,
    mask_rule: str,
    classes: int,
    background: int,
) -> str:
    """A sentence saying which masks hold which values that do not fit their rule."""
    # Each mask may keep the rule, as 0/1 and 0/255 do, and all together break it.
    breaking = [s for s in counts if not _fits(mask_rule, counts[s], classes, background)]
    source, shown = folder, {value for numbers in counts.values() for value in numbers}
    if breaking:
        source, shown = files[breaking[0]], set(counts[breaking[0]])
    others = [files[stem].name for stem in breaking[1:]]
    nor = f", nor do those of {listed(others, 3)}" if others else ""
    return (
        f"{source}: mask values {listed(sorted(shown), 10)} do not fit mask_rule {mask_rule!r} with"
        f" {classes} classes{nor}"
    )


def _refuse_soft_edges(
    files: Mapping[str, Path],
    masks: Pixels,
    counts: Mapping[str, Mapping[int, int]],
    no_cells: list[int],
) -> None:
    soft = [
        stem
        for stem in masks
        if _may_have_soft_edges(counts[stem])
        and _has_soft_edges(masks[stem], counts[stem])
        and not _are_connected(masks, [stem], no_cells)
    ]
    if soft:
        low, *between, high = sorted(counts[soft[0]])
        others = [files[stem].name for stem in soft[1:]]
        also = f" (also in {listed(others, 3)})" if others else ""
        raise InputError(
            f"{files[soft[0]]}: {len(between)} values lie between {low} and {high}{also}, as"
            " after smoothing, resizing or saving as JPEG; threshold the masks, and read them as"
            " 'binary'"
        )


def _remedies(
    values: set[int],
    mask_rule: str,
    classes: int,
    background: int,
    ignore_value: int,
    connected: bool,
) -> list[str]:
    """The ways to read these numbers, the most plausible first."""
    top = max(values)
    rest = values - {top}
    rules = ["classes"] if background == 1 else ["binary", "instances", "classes"]
    if not connected or len(values) < 3:
        rules = [rule for rule in rules if rule != "instances"]
    remedies = [repr(rule) for rule in rules if _fits(rule, values, classes, background)]
    if ignore_value != -1 or len(rest) < 2:
        rest = set()
    for numbers, also in ((values, ""), (rest, f" and ignore_value {top}")):
        number = max(numbers, default=0) - background + 1
        if classes < number <= _FEW and min(numbers) >= background:
            remedies.append(f"'classes' with {number} classes{also}")
            break
    if rest and _fits(mask_rule, rest, classes, background):
        remedies.append(f"{mask_rule!r} with ignore_value {top}")
    if _is_mark(top, values):
        remedies.sort(key=lambda remedy: "ignore_value" not in remedy)
        if rest and connected and len(values) > 3:
            remedies.insert(0, f"'instances' with ignore_value {top}")
    if top == classes and 0 in values and ignore_value == -1 and background == 0:
        remedies.append("'classes' with ignore_value 0 if 0 means not annotated")
    return remedies


def _advice(remedies: list[str], values: set[int], connected: bool) -> str:
    """The end of the sentence that masks do not fit their rule."""
    if remedies:
        return f"; all masks fit {', or '.join(remedies)}"
    if connected or min(values) < 0:
        return "; no rule fits all masks"
    if len(values) < _FEW:
        return (
            "; no rule fits all masks; if they are classes, number them from 0 to"
            f" {len(values) - 1}"
        )
    return (
        ": most of them occur in several separate pieces, like grey values; no rule fits all masks"
    )


def _notice_classes(
    folder: str | os.PathLike, values: set[int], mask_rule: str, background: int, from_one: bool
) -> None:
    """Warns if numbers that are read as classes are not the class numbers, or seem not to be."""
    if mask_rule == "binary" and values - {background, background + 1}:
        logger.warning(
            "%s: mask values %d and %d are read as classes 0 and 1",
            *(folder, background, max(values)),
        )
    elif mask_rule == "classes" and from_one:
        logger.warning(
            "%s: no mask holds 0, the background; if classes begin at 1, set ignore_value to 0",
            folder,
        )


def _notice_cells(
    folder: str | os.PathLike, values: set[int], connected: bool, each_one: bool
) -> None:
    """Warns if numbers that are read as cells look as if they meant something else."""
    top = max(values)
    if not connected and each_one:
        logger.warning(
            "%s: each mask is read as at most one cell; mask_rule 'binary' would find several",
            folder,
        )
    elif _is_mark(top, values):
        logger.warning(
            "%s: %d is read as a cell; if it means not annotated, set ignore_value to %d",
            *(folder, top, top),
        )
    elif not connected:
        is_few = len(values) > 1 and top < _FEW
        logger.warning(
            "%s: most numbers occur in several separate pieces, but each number is read as one "
            "cell%s",
            *(folder, "; 'classes' reads them as classes" if is_few else ""),
        )


def _is_mark(top: int, values: set[int]) -> bool:
    """Whether the highest number marks what is not annotated, far above a few others."""
    return top in _MARKS and 0 < max(values - {top}, default=0) < _FEW


def _may_have_soft_edges(counts: Mapping[int, int]) -> bool:
    """Whether most pixels are about as dark or as bright as possible, and many are bright.

    In images, few pixels are as bright as the brightest.

    Args:
      counts: the number of pixels of each value that counts.
    """
    if len(counts) < 5 or _is_mark(max(counts), set(counts)):
        return False
    values, pixels = np.array(sorted(counts.items())).T
    low, high = values[0], values[-1]
    dark = pixels[values <= low + 0.1 * (high - low)].sum()
    bright = pixels[values >= high - 0.1 * (high - low)].sum()
    return bool(dark + bright >= 0.5 * pixels.sum() and bright >= 0.25 * (pixels.sum() - dark))


def _has_soft_edges(mask: np.ndarray, counts: Mapping[int, int]) -> bool:
    """Whether grey values lead from one frequent number to another at the borders of cells.

    In masks that number the cells, a number rarely lies between a lower and a higher neighbour.

    Args:
      mask: int32 [pages, H, W].
      counts: the number of pixels of each value that counts.
    """
    between = (mask > min(counts)) & (mask < max(counts))
    graded = mask > ndimage.minimum_filter(mask, (1, 3, 3))
    graded &= mask < ndimage.maximum_filter(mask, (1, 3, 3))
    return bool(graded[between].mean() > 0.5)


def _are_connected(masks: Pixels, stems: Iterable[str], others: list[int]) -> bool:
    """Whether most numbers on a page form one piece each, except for a tenth of their pixels.

    Numbers with only a few pixels do not count.

    Args:
      masks: int32 [pages, H, W] by stem.
      stems: of the masks to look at.
      others: numbers of the background and of what does not count.
    """
    pages = [(stem, page) for stem in stems for page in range(masks.shapes[stem][0])]
    shares = []
    for stem, index in pages[:: -(-len(pages) // _PAGES)]:
        page = masks[stem][index]
        top, left = (max(0, (side - _SIDE) // 2) for side in page.shape)
        page = page[top : top + _SIDE, left : left + _SIDE]
        is_cell = ~np.isin(page, others)
        # Between each two pixels lies one that joins them if they are equal.
        joined = np.zeros((2 * page.shape[0] - 1, 2 * page.shape[1] - 1), bool)
        joined[::2, ::2] = is_cell
        joined[1::2, ::2] = is_cell[1:] & (page[1:] == page[:-1])
        joined[::2, 1::2] = is_cell[:, 1:] & (page[:, 1:] == page[:, :-1])
        pieces = ndimage.label(joined)[0][::2, ::2][is_cell]
        _, first, pixels = np.unique(pieces, return_index=True, return_counts=True)
        numbers, number = np.unique(page[is_cell][first], return_inverse=True)
        largest = np.zeros(len(numbers), int)
        np.maximum.at(largest, number, pixels)
        total = np.bincount(number, pixels, len(numbers))
        shares.append((largest / total)[total >= _SPECK])
    is_one = np.concatenate(shares) >= 0.9
    return not is_one.size or bool(is_one.mean() > 0.5)
