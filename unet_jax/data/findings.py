"""What is found in a run's images and masks: a table, and what looks wrong in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from unet_jax.example import IGNORED, Example, separated
from unet_jax.network import context

_NAME_SHOWN = 30  # characters
# Pixels; smaller pieces are taken for specks.
_SPECK = 20
# As many examples are compared with shifted and turned masks.
_COMPARED = 20
_HERE = "left where they are"
_SHIFTS = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
# Measured: masks that are one pixel off leave 7 % (ISBI 2012) and 12 % (nuclei) more of the grey
# values unexplained than masks in their place; the true masks of ISBI 2012 leave 0.6 %.
_BETTER = 0.97
# Shares of the grey values' variance that masks explain: 0.3 for ISBI 2012, 0.8 for nuclei, 0.005
# for cells under DIC; less than 0.0004 for masks of other images.
_UNRELATED = 0.02


class Finding(NamedTuple):
    """What one example holds.

    Attributes:
      name: of the example.
      size: height and width in pixels.
      channels: of the image.
      dtype: of the image.
      low: smallest grey value.
      high: largest grey value.
      like_a_mask: the image holds at most two values, or is 0 exactly where the mask is.
      pixels: int64 [classes + 1], of each class, and ignored ones.
      diameters: float [cells], in pixels: that of a circle of the same area.
      gap: pixels of background between the nearest two cells, 0 = they touch, inf = fewer than two.
      lost: share of the cells' pixels that `separated` takes from them.
      pieces: of background, specks left out, once touching cells are separated.
      all_sides: a cell reaches all four sides of the image.
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
    gap: float
    lost: float
    pieces: int
    all_sides: bool


def finding(example: Example, classes: int) -> Finding:
    """Looks at one example, as it is stored."""
    image, labels, instances = example[1:]
    shown = separated(example).labels
    pieces = ndimage.label(shown <= 0, np.ones((3, 3)))[0]
    cells = labels > 0
    sides = instances[0], instances[-1], instances[:, 0], instances[:, -1]
    return Finding(
        name=example.name,
        size=labels.shape,
        channels=1 if image.ndim == 2 else image.shape[-1],
        dtype=str(image.dtype),
        low=image.min(),
        high=image.max(),
        like_a_mask=_is_like_a_mask(image, cells),
        pixels=np.bincount(np.where(labels == IGNORED, classes, labels).ravel(), None, classes + 1),
        diameters=cell_diameters(instances),
        gap=smallest_gap(instances),
        lost=(cells & (shown <= 0)).sum() / max(cells.sum(), 1),
        pieces=int((np.bincount(pieces.ravel())[1:] >= _SPECK).sum()),
        all_sides=bool(set.intersection(*({*side.tolist()} for side in sides)) - {0}),
    )


def table(findings: dict[str, list[Finding]], class_names: Sequence[str]) -> str:
    """What was found, with a column for each split, as text of several lines."""
    columns = [["", *_rows(findings["train"], class_names)]]
    columns += [[s, *_rows(f, class_names).values()] for s, f in findings.items()]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def doubts(findings: list[Finding], stored: list[Example], config: ConfigDict) -> list[str]:
    """What looks wrong in the training split, a plain sentence each.

    Args:
      findings: of the training split.
      stored: its examples.
      config: of the run.
    """
    names, classes = config.class_names, config.model.classes
    found = []

    def tell(kind, text, which):
        if which:
            first = ", ".join(f.name[:_NAME_SHOWN] for f in which[:3])
            more = ", ..." if len(which) > 3 else ""
            found.append(f"{len(which)} of {len(findings)} {kind} ({first}{more}): {text}")

    tell(
        "images",
        "they hold two grey values at most, or are 0 exactly where their mask is; are they masks, "
        "or empty?",
        [f for f in findings if f.like_a_mask],
    )
    scattered = [f for f in findings if f.lost > 0.5]
    tell(
        "masks",
        "their numbers change from pixel to pixel, like the grey values of an image; are they "
        "masks?",
        scattered,
    )
    for label, name in enumerate(names):
        tell(
            "masks",
            f"they hold nothing but {name!r}; right only if their images do, too.",
            [f for f in findings if f.pixels[label] and f.pixels[label] == f.pixels[:-1].sum()],
        )
    pixels = sum(f.pixels[:-1] for f in findings)
    for label in np.flatnonzero(pixels == 0):
        found.append(
            f"Class {label}, {names[label]!r}, is in no training mask; none will be found."
        )
    inverted = [f for f in findings if classes == 2 and _is_inverted(f)]
    sheets = [f for f in findings if classes == 2 and f.all_sides and f.pixels[0]]
    merged = [f for f in sheets if not _is_inverted(f)]
    if not scattered:
        tell(
            "masks",
            f"{names[0]!r} lies in pieces surrounded by {names[-1]!r}, as if the two were the "
            f"wrong way round, or all cells touched; in a mask, {names[0]!r} is 0, and cells that "
            "touch need a line of it between them, or masks that number them (mask_rule "
            "'instances').",
            inverted,
        )
        tell(
            "masks",
            f"one {names[-1]!r} reaches all four sides of the image; cells that touch need a line "
            "of background between them, or masks that number them (mask_rule 'instances').",
            merged,
        )
    found += _misfits(stored)
    diameters = np.concatenate([f.diameters for f in findings])
    scale, reach = config.data.get("scale", 1.0), context(config.model.depth)
    if len(diameters) and not (scattered or inverted or merged):
        diameter = scale * np.median(diameters)
        if diameter > reach:
            found.append(
                f"A cell of median size is {diameter:.0f} pixels wide, but the network sees no "
                f"farther than {reach} pixels from each pixel: try "
                f"--config.data.scale={0.4 * reach / diameter * scale:.2g}."
            )
    side = config.train.tile_side - 2 * reach
    if len(findings) < 5 and pixels.sum() * scale**2 < 20 * side**2:
        found.append(
            f"There are only {len(findings)} training images, with the pixels of "
            f"{pixels.sum() * scale**2 / side**2:.1f} tiles: little to learn from."
        )
    return found


def cell_diameters(instances: np.ndarray) -> np.ndarray:
    """float64 [cells], in pixels: of circles as large as the cells of `instances`, int [H, W]."""
    areas = np.unique(instances[instances > 0], return_counts=True)[1]
    return 2 * np.sqrt(areas / np.pi)


def smallest_gap(instances: np.ndarray) -> float:
    """Pixels of background between the nearest two cells, 0 where they touch by their sides.

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


def explained(grey: np.ndarray, labels: np.ndarray) -> float:
    """The share of the grey values' variance that lies between the classes, in [0, 1].

    Args:
      grey: float [H, W].
      labels: int [H, W], the class of each pixel or `IGNORED`.
    """
    grey, labels = grey[labels != IGNORED], labels[labels != IGNORED]
    if grey.size == 0 or np.ptp(grey) == 0:
        return 0.0
    count = np.bincount(labels)
    deviation = np.bincount(labels, grey - grey.mean())
    between = np.square(deviation) / np.maximum(count, 1)
    return float(between.sum() / grey.size / grey.var())


def _rows(findings, class_names):
    """The table's cells of one split by their titles."""
    pixels = sum(f.pixels for f in findings)
    sizes = sorted((f.size for f in findings), key=np.prod)
    diameters = np.concatenate([f.diameters for f in findings])
    touching = sum(f.gap == 0 for f in findings)
    gap = min(f.gap for f in findings)
    rows = {
        "images": f"{len(findings)}",
        "height x width, pixels": _span(*("{} x {}".format(*s) for s in (sizes[0], sizes[-1]))),
        "channels": f"{findings[0].channels}",  # the same for all, see the readers
        "numbers": ", ".join(sorted({f.dtype for f in findings})),
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
        "smallest gap of two cells": "-",
    }
    if len(diameters):
        rows["cell diameter, median"] = f"{np.median(diameters):.0f}"
        rows["    smallest to largest"] = _span(f"{diameters.min():.0f}", f"{diameters.max():.0f}")
    if touching:
        rows["smallest gap of two cells"] = f"0, they touch in {touching}"
    elif np.isfinite(gap):
        rows["smallest gap of two cells"] = f"{gap:.0f}"
    return rows


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _is_like_a_mask(image, cells):
    grey = image.reshape(*cells.shape, -1)[..., 0]
    between = (grey > grey.min()) & (grey < grey.max())
    return not between.any() or bool((grey == 0).any() and np.array_equal(grey != 0, cells))


def _is_inverted(f):
    """Whether cells surround the background, instead of the other way round."""
    return f.pieces >= 3 and f.pieces > 2 * len(f.diameters)


def _misfits(stored: list[Example]) -> list[str]:
    """Masks that would fit their images better elsewhere, or do not fit them at all."""
    chosen = stored[:: -(-len(stored) // _COMPARED)]
    fits = [_fits(e) for e in chosen if len(np.unique(e.labels[e.labels != IGNORED])) > 1]
    if not fits:
        return []
    # An image that is not square has fewer ways to be turned.
    fit = {way: np.mean([f[way] for f in fits]) for way in fits[0] if all(way in f for f in fits)}
    here, best = fit[_HERE], max(fit, key=fit.get)
    if 1 - fit[best] < _BETTER * (1 - here):
        return [f"The masks fit their images better when they are {best}; look at the outlines."]
    by_chance = max(fit[way] for way in _turned(chosen[0].labels) if way in fit)
    if here < min(_UNRELATED, 2 * by_chance):
        return [
            "The masks have nothing to do with the grey values, as if they belonged to other "
            "images; look at the outlines."
        ]
    return []


def _fits(example):
    """How well the mask explains the grey values where it is, turned and moved, by the way."""
    labels = example.labels
    grey = example.image.reshape(*labels.shape, -1).mean(-1, dtype=np.float64)
    fits = {_HERE: explained(grey, labels)}
    fits |= {
        way: explained(grey, turned)
        for way, turned in _turned(labels).items()
        if turned.shape == labels.shape
    }
    height, width = labels.shape
    if min(height, width) > 8:
        # All of them on the same pixels.
        for y, x in _SHIFTS:
            moved = labels[2 - y : height - 2 - y, 2 - x : width - 2 - x]
            fits[_moved(y, x)] = explained(grey[2:-2, 2:-2], moved)
    return fits


def _turned(labels):
    return {
        "turned by 180 degrees": labels[::-1, ::-1],
        "mirrored top to bottom": labels[::-1],
        "mirrored left to right": labels[:, ::-1],
        "transposed": labels.T,
        "transposed and turned by 180 degrees": labels[::-1, ::-1].T,
        "turned by 90 degrees": np.rot90(labels),
        "turned by -90 degrees": np.rot90(labels, -1),
    }


def _moved(y, x):
    """In words: by so many pixels down and to the right."""
    steps = [
        f"{abs(n)} pixel{'s' if abs(n) > 1 else ''} {forwards if n > 0 else back}"
        for n, forwards, back in ((y, "down", "up"), (x, "to the right", "to the left"))
        if n
    ]
    return f"moved {' and '.join(steps)}" if steps else _HERE
