"""What is found in a run's images and masks: a table, and anything that looks wrong in it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_jax.configuration import Configuration
from unet_jax.data.mask_fit import misfits
from unet_jax.errors import listed
from unet_jax.example import IGNORED, Example, separated
from unet_jax.network import context
from unet_jax.unread import Examples, Unread, image_digests, sizes_of

_NAME_SHOWN = 30  # characters
# Pixels; smaller pieces are taken for specks.
_SPECK = 20
# As many pixels are looked at before a run.
_LOOKED_AT = 50 * 512**2


class Finding(NamedTuple):
    """The facts about one example.

    Attributes:
      name: of the example.
      size: height and width in pixels.
      channels: of the image.
      dtype: of the image.
      low: smallest grey value.
      high: largest grey value.
      like_a_mask: the image holds at most two values, equals its mask, or is 0 exactly where the
        mask is 0.
      pixels: int64 [classes + 1], the number of pixels of each class, and of ignored ones.
      diameters: float [cells], in pixels: those of circles of the same area.
      widths: float [cells], in pixels, see `cell_widths`.
      lost: share of the cells' pixels that `separated` takes from them.
      pieces: of background, without specks, once touching cells are separated.
      all_sides: whether a cell reaches all four sides of the image.
    """

    name: str
    size: tuple[int, int]
    channels: int
    dtype: str
    low: float
    high: float
    like_a_mask: bool
    pixels: np.ndarray
    diameters: np.ndarray
    widths: np.ndarray
    lost: float
    pieces: int
    all_sides: bool


def finding(example: Example, classes: int) -> Finding:
    """Examines one example, as it is stored."""
    image, labels, instances = example[1:]
    shown = separated(example).labels
    pieces = ndimage.label(shown <= 0, np.ones((3, 3)))[0]
    cells = labels > 0
    sides = instances[0], instances[-1], instances[:, 0], instances[:, -1]
    return Finding(
        name=example.name,
        size=labels.shape,
        channels=example.channels,
        dtype=str(image.dtype),
        low=image.min(),
        high=image.max(),
        like_a_mask=_is_like_a_mask(example),
        pixels=np.bincount(np.where(labels == IGNORED, classes, labels).ravel(), None, classes + 1),
        diameters=cell_diameters(instances),
        widths=cell_widths(instances),
        lost=(cells & (shown <= 0)).sum() / max(cells.sum(), 1),
        pieces=int((np.bincount(pieces.ravel())[1:] >= _SPECK).sum()),
        all_sides=bool(set.intersection(*({*side.tolist()} for side in sides)) - {0}),
    )


def _is_like_a_mask(example: Example) -> bool:
    _, image, labels, instances = example

    def is_one(grey: np.ndarray) -> bool:
        between = (grey > grey.min()) & (grey < grey.max())
        if not between.any() or np.array_equal(grey, labels) or np.array_equal(grey, instances):
            return True
        return bool((grey == 0).any() and np.array_equal(grey != 0, labels > 0))

    # Of RGB, two channels may be empty.
    return all(map(is_one, np.moveaxis(image.reshape(*labels.shape, -1), -1, 0)))


def _is_inverted(f: Finding) -> bool:
    """Whether cells surround the background, instead of the other way round."""
    return f.pixels[0] > 0 and f.pieces >= 3 and f.pieces > 2 * len(f.diameters)


def table(
    findings: dict[str, list[Finding]],
    stored: Mapping[str, Examples],
    class_names: Sequence[str],
) -> str:
    """What was found in the splits, with a column for each, as text with several lines."""
    rows = {split: _rows(findings[split], stored[split], class_names) for split in findings}
    titles = next(iter(rows.values()))
    columns = [["", *titles], *([split, *cells.values()] for split, cells in rows.items())]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def _rows(
    findings: list[Finding], examples: Examples, class_names: Sequence[str]
) -> dict[str, str]:
    """The table's entries for one split, by their titles."""
    pixels = np.sum([f.pixels for f in findings], 0)
    sizes = sorted((f.size for f in findings), key=np.prod)
    diameters = np.concatenate([f.diameters for f in findings])
    gaps = [smallest_gap(e.instances) for e in examples]
    rows = {
        "images": f"{len(findings)}",
        "height x width, pixels": _span(*("{} x {}".format(*s) for s in (sizes[0], sizes[-1]))),
        "channels": f"{findings[0].channels}",  # the same for all, see the readers
        "pixel type": ", ".join(sorted({f.dtype for f in findings})),
        "grey values": _span(
            f"{min(f.low for f in findings):g}", f"{max(f.high for f in findings):g}"
        ),
    }
    for name, count in zip(class_names, pixels[:-1], strict=True):
        rows[f"share of {name}"] = f"{100 * count / max(pixels[:-1].sum(), 1):.1f} %"
    rows |= {
        "ignored pixels": f"{100 * pixels[-1] / pixels.sum():.1f} %",
        "cells": f"{len(diameters):,}",
        "cell diameter, median": "-",
        "    smallest to largest": "-",
        "smallest gap between cells": "-",
    }
    if len(diameters):
        rows["cell diameter, median"] = f"{np.median(diameters):.0f}"
        rows["    smallest to largest"] = _span(f"{diameters.min():.0f}", f"{diameters.max():.0f}")
    if 0 in gaps:
        rows["smallest gap between cells"] = f"0; cells touch in {gaps.count(0)}"
    elif np.isfinite(min(gaps)):
        rows["smallest gap between cells"] = f"{min(gaps):.0f}"
    return rows


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def doubts(
    stored: Mapping[str, Examples], config: Configuration, findings: list[Finding] | None = None
) -> list[str]:
    """What looks wrong in a run's data, one plain sentence each.

    Args:
      stored: the examples of its splits.
      config: of the run.
      findings: of the training split; by default those of some of its examples, as many as can be
        examined in a second.
    """
    names, classes = config.class_names, config.model.classes
    train = stored["train"]
    looked_at = train
    if findings is None or isinstance(train, Unread):
        count = max(4, _LOOKED_AT * len(train) // sum(map(math.prod, sizes_of(train))))
        looked_at = train[:: -(-len(train) // count)]
    findings = findings or [finding(e, classes) for e in looked_at]
    scattered = [f for f in findings if f.lost > 0.5]
    inverted = [f for f in findings if classes == 2 and _is_inverted(f)]
    sheets = [f for f in findings if classes == 2 and f.all_sides and f.pixels[0]]
    merged = [f for f in sheets if not _is_inverted(f)]
    found = _strange_values(findings, scattered, names)
    found += _absent_classes(findings, train, names)
    if not scattered:
        found += _joined_cells(findings, inverted, merged, names) + misfits(list(looked_at))
    if not (scattered or inverted or merged):
        found += _large_cells(findings, config)
    return found + _few_pixels(findings, len(train), config) + duplicates(stored)


def _strange_values(
    findings: list[Finding], scattered: list[Finding], names: Sequence[str]
) -> list[str]:
    """Images that may be masks, masks that may be images, and masks of only one class."""
    found = _said_of(
        [f for f in findings if f.like_a_mask],
        findings,
        "images",
        "they hold at most two grey values, are equal to their mask, or are 0 exactly where the "
        "mask is 0; are they masks, or empty?",
    )
    found += _said_of(
        scattered,
        findings,
        "masks",
        "their numbers change from pixel to pixel, like the grey values of an image; are they "
        "masks?",
    )
    for label, name in enumerate(names):
        found += _said_of(
            [f for f in findings if f.pixels[label] and f.pixels[label] == f.pixels[:-1].sum()],
            findings,
            "masks",
            f"they hold nothing but {name!r}; this is right only if their images show nothing "
            "else.",
        )
    return found


def _absent_classes(findings: list[Finding], train: Examples, names: Sequence[str]) -> list[str]:
    def is_there(label: int) -> bool:
        if isinstance(train, Unread):
            return any(facts.pixels[label] for facts in train.facts)
        return any((e.labels == label).any() for e in train)

    return [
        f"Class {label}, {names[label]!r}, is in no training mask; it will never be found."
        for label, pixels in enumerate(_class_pixels(findings))
        if pixels == 0 and not is_there(label)
    ]


def _joined_cells(
    findings: list[Finding], inverted: list[Finding], merged: list[Finding], names: Sequence[str]
) -> list[str]:
    """Masks in which the two classes are swapped, or with one cell instead of many."""
    found = _said_of(
        inverted,
        findings,
        "masks",
        f"{names[0]!r} lies in pieces surrounded by {names[-1]!r}, as if the two were swapped or "
        f"all cells touched; in a mask, {names[0]!r} is 0, and cells that touch need a line of it "
        "between them, or masks that number them (mask_rule 'instances').",
    )
    return found + _said_of(
        merged,
        findings,
        "masks",
        f"one {names[-1]!r} reaches all four sides of the image, like background; cells that "
        "touch need a line of background between them, or masks that number them (mask_rule "
        "'instances').",
    )


def _large_cells(findings: list[Finding], config: Configuration) -> list[str]:
    """A warning if the network cannot see a whole cell at once."""
    scale, reach = config.data.scale, context(config.model.depth)
    # Not the diameter: where long thin cells are made so small, no background is left between them.
    widths = np.concatenate([f.widths for f in findings])
    if not (len(widths) and _class_pixels(findings)[0]):
        return []
    width = scale * np.median(widths)
    if width <= reach:
        return []
    return [
        f"The median width of a cell is {width:.0f} pixels, but the network sees only {reach} "
        "pixels around each pixel; try "
        f"--config.data.scale={0.4 * reach / width * scale:.2g}."
    ]


def _few_pixels(findings: list[Finding], images: int, config: Configuration) -> list[str]:
    """A warning if the training images hold too little to learn from."""
    side = config.train.tile_side - 2 * context(config.model.depth)
    tiles = _class_pixels(findings).sum() * config.data.scale**2 / side**2
    if images >= 5 or tiles >= 20:
        return []
    return [
        f"There are only {images} training image(s), with as many pixels as {tiles:.1f} tiles, "
        "which is little to learn from."
    ]


def _class_pixels(findings: list[Finding]) -> np.ndarray:
    """int64 [classes], the number of pixels in all of them together."""
    return np.sum([f.pixels[:-1] for f in findings], 0)


def _said_of(which: list[Finding], findings: list[Finding], kind: str, text: str) -> list[str]:
    """A sentence such as "2 of 8 masks (c3, c4): ...", or none if it applies to none."""
    if not which:
        return []
    names = listed([f.name[:_NAME_SHOWN] for f in which], 3)
    return [f"{len(which)} of {len(findings)} {kind} ({names}): {text}"]


def duplicates(stored: Mapping[str, Examples]) -> list[str]:
    """Pictures that are in several splits under two names, in one sentence if there are any.

    They are recognised by their pixels after reading, which must all be equal; masks may differ.
    """
    earlier: dict[str, str] = {}
    repeated: list[str] = []
    for split, examples in stored.items():
        digests = image_digests(examples)
        repeated += [
            f"{name[:_NAME_SHOWN]} ({split}) is the same picture as {earlier[digest]}"
            for name, digest in digests
            if digest in earlier
        ]
        # Only now: twice in one split is no fault. Training comes first, and is named first.
        earlier = {digest: f"{name[:_NAME_SHOWN]} ({split})" for name, digest in digests} | earlier
    if not repeated:
        return []
    more = f", and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return [
        f"{', '.join(repeated[:3])}{more}: a network cannot be tested on images that it has seen; "
        "leave out one of each pair."
    ]


def cell_diameters(instances: np.ndarray) -> np.ndarray:
    """float64 [cells], in pixels: diameters of circles as large as the cells of int [H, W]."""
    areas = np.unique(instances[instances > 0], return_counts=True)[1]
    return 2 * np.sqrt(areas / np.pi)


def cell_widths(instances: np.ndarray) -> np.ndarray:
    """float64 [cells], to within a pixel: the diameter of the largest circle in each cell.

    Cells are taken to continue beyond the image's border. `instances` is int [H, W].
    """
    # Numbered from 1, since SciPy makes a list up to the largest number.
    cells, is_cell = np.zeros(instances.shape, np.int32), instances > 0
    cells[is_cell] = 1 + np.unique(instances[is_cell], return_inverse=True)[1]
    widths = []
    for cell, box in enumerate(ndimage.find_objects(cells), 1):
        around = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in box)
        inside = cells[around] == cell
        depth = ndimage.distance_transform_edt(inside).max()
        widths.append(min(inside.shape) if inside.all() else 2 * depth - 1)
    return np.array(widths, float)


def smallest_gap(instances: np.ndarray) -> float:
    """Pixels of background between the two nearest cells, 0 if they touch side by side.

    Args:
      instances: int [H, W], the cell each pixel belongs to, 0 = none.

    Returns:
      The width, exact along rows and columns; inf for fewer than two cells.
    """
    if not instances.any():
        return np.inf
    distance, nearest = ndimage.distance_transform_edt(instances == 0, return_indices=True)
    cell = instances[tuple(nearest)]
    # Where the realms of two cells meet, a way from one cell to the other crosses the background.
    gaps = [
        (d[1:] + d[:-1])[c[1:] != c[:-1]].min(initial=np.inf)
        for d, c in ((distance, cell), (distance.T, cell.T))
    ]
    return float(min(gaps))
