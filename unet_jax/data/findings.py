"""What is found in a run's images and masks: a table, and what looks wrong in it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from unet_jax.configuration import Configuration
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share, image_sha256, separated
from unet_jax.network import context

_NAME_SHOWN = 30  # characters
# Pixels; smaller pieces are taken for specks.
_SPECK = 20
# As many pixels are looked at before a run, and as many examples compared, on squares of that side.
_LOOKED_AT = 50 * 512**2
_COMPARED = 10
_SIDE = 320
_MOVED = 12  # pixels, farthest
# Measured on masks of nuclei, DIC, electron microscopy and made-up phase contrast: within a pixel
# of their place the true ones explain 0.99 of what they do in the best place; 10 pixels off, 0.91.
_BETTER = 0.95
# In their right place they explain 5 times as much as turned ones at least; one cell in the middle
# of each image 1.5 times, so that nothing is said of it.
_CLEARLY = 3
# Moved or turned or not, they explain more than the masks of other images.
_OTHERS_BETTER = 1.5
# With a smaller share of the variance, or fewer cells, chance decides.
_EVIDENCE, _FEW_CELLS = 0.03, 10


class Finding(NamedTuple):
    """What one example holds.

    Attributes:
      name: of the example.
      size: height and width in pixels.
      channels: of the image.
      dtype: of the image.
      low: smallest grey value.
      high: largest grey value.
      like_a_mask: the image holds at most two values, is its mask, or is 0 exactly where that is.
      pixels: int64 [classes + 1], of each class, and ignored ones.
      diameters: float [cells], in pixels: that of a circle of the same area.
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
        like_a_mask=_is_like_a_mask(example),
        pixels=np.bincount(np.where(labels == IGNORED, classes, labels).ravel(), None, classes + 1),
        diameters=cell_diameters(instances),
        lost=(cells & (shown <= 0)).sum() / max(cells.sum(), 1),
        pieces=int((np.bincount(pieces.ravel())[1:] >= _SPECK).sum()),
        all_sides=bool(set.intersection(*({*side.tolist()} for side in sides)) - {0}),
    )


def table(
    findings: dict[str, list[Finding]],
    stored: dict[str, list[Example]],
    class_names: Sequence[str],
) -> str:
    """What was found in the splits, with a column for each, as text of several lines."""
    columns = [_rows(findings[split], stored[split], class_names) for split in findings]
    columns = [["", *columns[0]]] + [
        [split, *rows.values()] for split, rows in zip(findings, columns, strict=True)
    ]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    )


def doubts(
    stored: dict[str, list[Example]], config: Configuration, findings: list[Finding] | None = None
) -> list[str]:
    """What looks wrong in a run's data, a plain sentence each.

    Args:
      stored: the examples of its splits.
      config: of the run.
      findings: of the training split; by default those of some of its examples, as many as take a
        second.
    """
    names, classes = config.class_names, config.model.classes
    train = stored["train"]
    looked_at = train
    if findings is None:
        count = max(4, _LOOKED_AT * len(train) // sum(e.labels.size for e in train))
        looked_at = train[:: -(-len(train) // count)]
        findings = [finding(e, classes) for e in looked_at]
    found = []

    def tell(kind, text, which):
        if which:
            found.append(_of(which, findings, kind) + text)

    tell(
        "images",
        "they hold two grey values at most, are equal to their mask, or are 0 exactly where it is; "
        "are they masks, or empty?",
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
        if not any((e.labels == label).any() for e in train):
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
            f"one {names[-1]!r} reaches all four sides of the image, as background does; cells "
            "that touch need a line of background between them, or masks that number them "
            "(mask_rule 'instances').",
            merged,
        )
        found += _misfits(looked_at)
    diameters = np.concatenate([f.diameters for f in findings])
    scale, reach = config.data.scale, context(config.model.depth)
    if len(diameters) and pixels[0] and not (scattered or inverted or merged):
        diameter = scale * np.median(diameters)
        if diameter > reach:
            found.append(
                f"A cell of median size is {diameter:.0f} pixels wide, but the network sees no "
                f"farther than {reach} pixels from each pixel: try "
                f"--config.data.scale={0.4 * reach / diameter * scale:.2g}."
            )
    side = config.train.tile_side - 2 * reach
    if len(train) < 5 and pixels.sum() * scale**2 < 20 * side**2:
        found.append(
            f"Only {len(train)} training image(s), with the pixels of "
            f"{pixels.sum() * scale**2 / side**2:.1f} tiles: little to learn from."
        )
    return found + duplicates(stored)


def duplicates(stored: dict[str, list[Example]]) -> list[str]:
    """Pictures that are in several splits under two names, in one sentence if there are any.

    They are known by their pixels after reading, all of them and exactly; masks may differ.
    """
    earlier, repeated = {}, []
    for split, examples in stored.items():
        digests = [image_sha256(e.image) for e in examples]
        repeated += [
            f"{e.name[:_NAME_SHOWN]} ({split}) is the same picture as {earlier[digest]}"
            for e, digest in zip(examples, digests, strict=True)
            if digest in earlier
        ]
        # Only now: twice in one split is no fault. Training comes first, and is named first.
        earlier = {
            digest: f"{e.name[:_NAME_SHOWN]} ({split})"
            for e, digest in zip(examples, digests, strict=True)
        } | earlier
    if not repeated:
        return []
    more = f", and {len(repeated) - 3} more" if len(repeated) > 3 else ""
    return [
        f"{', '.join(repeated[:3])}{more}: a network is not tested by what it has seen; leave one "
        "of each out."
    ]


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


def explained(features: np.ndarray, zones: np.ndarray) -> float:
    """The share of the features' variance that lies between the zones, in [0, 1].

    Args:
      features: float32 [features, H, W], each of mean 0 and variance 1; shares are averaged.
      zones: float32 [zones, H, W], 1 where a pixel belongs to a zone; none = it does not count.
    """
    sums = np.tensordot(zones, features, ((1, 2), (1, 2)))
    return float(_between(sums, zones.sum((1, 2))[:, None]).mean())


def _of(which, findings, kind) -> str:
    """Such as "2 of 8 masks (c3, c4): "."""
    first = ", ".join(f.name[:_NAME_SHOWN] for f in which[:3])
    more = ", ..." if len(which) > 3 else ""
    return f"{len(which)} of {len(findings)} {kind} ({first}{more}): "


def _rows(findings, examples, class_names):
    """The table's cells of one split by their titles."""
    pixels = sum(f.pixels for f in findings)
    sizes = sorted((f.size for f in findings), key=np.prod)
    diameters = np.concatenate([f.diameters for f in findings])
    gaps = [smallest_gap(e.instances) for e in examples]
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
    if 0 in gaps:
        rows["smallest gap of two cells"] = f"0, they touch in {gaps.count(0)}"
    elif np.isfinite(min(gaps)):
        rows["smallest gap of two cells"] = f"{min(gaps):.0f}"
    return rows


def _span(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _is_like_a_mask(example):
    _, image, labels, instances = example
    grey = image.reshape(*labels.shape, -1)[..., 0]
    between = (grey > grey.min()) & (grey < grey.max())
    if not between.any() or np.array_equal(grey, labels) or np.array_equal(grey, instances):
        return True
    return bool((grey == 0).any() and np.array_equal(grey != 0, labels > 0))


def _is_inverted(f):
    """Whether cells surround the background, instead of the other way round."""
    return f.pixels[0] > 0 and f.pieces >= 3 and f.pieces > 2 * len(f.diameters)


def _misfits(stored: list[Example]) -> list[str]:
    """Masks that would fit other images better, or their own elsewhere, or do not fit at all.

    Cells may be as bright as what is around them, as in phase contrast: a mask fits where its
    zones, inside and outside, near an edge and far from it, differ in what `_features` sees.
    """
    step = max(1, min(min(e.labels.shape) for e in stored) // 512)
    telling = [e for e in stored if _tells(_middle(e.labels, step))]
    compared = telling[:: -(-len(telling) // _COMPARED) or 1]
    if not compared:
        return []
    features = [_features(_middle(e.image, step)) for e in compared]
    zones = [_zones(_middle(separated(e).labels, step)) for e in compared]
    moved = [_explained_when_moved(f, z) for f, z in zip(features, zones, strict=True)]
    turned = [
        {way: explained(f, t) for way, t in _turned(z).items()}
        for f, z in zip(features, zones, strict=True)
    ]
    whole = [z.any(0).all() for z in zones]  # no pixel is ignored: the same ones are compared
    mixed = []
    for i, example in enumerate(compared):
        own = max(moved[i].max(), *turned[i].values())
        others = {
            compared[j].name: explained(features[i], zones[j])
            for j in range(len(compared))
            if j != i and whole[i] and whole[j] and zones[j].shape[1:] == zones[i].shape[1:]
        }
        other = max(others, key=others.get, default=None)
        if other and others[other] > max(_OTHERS_BETTER * own, _EVIDENCE):
            mixed.append((example, other))
    if mixed:
        example, other = mixed[0]
        return [
            _of([e for e, _ in mixed], compared, "masks")
            + f"masks of other images fit better, to {example.name[:_NAME_SHOWN]} that of "
            f"{other[:_NAME_SHOWN]}; compare the names of images and masks."
        ]

    cells = sum(len(cell_diameters(_middle(e.instances, step))) for e in compared)
    moved, by_way = np.mean(moved, 0), {w: np.mean([t[w] for t in turned]) for w in turned[0]}
    if cells < _FEW_CELLS:
        return []
    # Who draws a mask may be a pixel off.
    here, best = moved[_MOVED - 1 : _MOVED + 2, _MOVED - 1 : _MOVED + 2].max(), moved.max()
    y, x = step * (np.argwhere(moved == best)[0] - _MOVED)
    fit = {_moved(y, x): best} | by_way
    way = max(fit, key=fit.get)
    others = np.mean([by_way[w] for w in by_way if w != way])
    if here < _BETTER * fit[way] and fit[way] > max(_CLEARLY * others, _EVIDENCE):
        return [f"The masks fit their images better when they are {way}; look at the outlines."]
    in_place = here > _BETTER * best and here > 1.1 * np.median(moved)
    by_chance = np.array([*by_way.values()])
    if here < by_chance.mean() + 2 * by_chance.std() and not in_place:
        return [
            "The masks have nothing to do with what the images show, as if they belonged to other "
            "images; look at the outlines."
        ]
    return []


def _tells(labels):
    """Whether a mask can be compared with its image: strokes lie where one likes."""
    counted = labels[labels != IGNORED]
    return (
        min(labels.shape) >= 4 * _MOVED
        and annotated_share([labels]) >= SPARSE
        and counted.min() < counted.max()
    )


def _middle(array, step):
    """The square in the middle of [H, W, ...], every `step`-th pixel of it.

    Turned with the whole array, it is turned in itself.
    """
    array = array[::step, ::step]
    side = min(*array.shape[:2], _SIDE)
    top, left = ((length - side) // 2 for length in array.shape[:2])
    return array[top : top + side, left : left + side]


def _features(image):
    """float32 [2, H, W]: how far a grey value is from those around, and how rough they are there.

    Brighter is as far as darker, for a cell under DIC has a bright side and a dark one. Ranks, of
    mean 0 and variance 1: no streak rules.
    """
    grey = image.reshape(*image.shape[:2], -1).mean(-1, dtype=np.float64)
    # The square of 1e30 is no float32.
    grey = (grey / max(np.abs(grey).max(), np.finfo(np.float64).tiny)).astype(np.float32)
    around = ndimage.uniform_filter(grey, len(grey) // 4)
    difference = np.abs(ndimage.gaussian_filter(grey, 1) - around)
    rough = ndimage.gaussian_filter(np.square(grey - ndimage.gaussian_filter(grey, 2)), 2)
    features = []
    for values in (difference, rough):
        ranks = np.searchsorted(np.sort(values, None), values).astype(np.float32)
        features.append((ranks - ranks.mean()) / max(ranks.std(), 1))
    return np.stack(features)


def _zones(labels):
    """float32 [zones, H, W]: each class farther than 6 pixels from any other, up to 6, up to 2."""
    counted = labels != IGNORED
    zone = 3 * labels
    for width in (5, 13):
        highest = ndimage.maximum_filter(labels, width)  # IGNORED is below all classes
        lowest = ndimage.minimum_filter(np.where(counted, labels, labels.max()), width)
        zone = zone + (highest != lowest)
    return np.stack([counted & (zone == z) for z in np.unique(zone[counted])]).astype(np.float32)


def _between(sums, counts):
    """The share of the variance between zones [zones, ...], of features of mean 0, variance 1."""
    total = np.maximum(counts.sum(0), 1)
    squares = np.square(sums) / np.maximum(counts, 1)
    return squares.sum(0) / total - np.square(sums.sum(0) / total)


def _explained_when_moved(features, zones):
    """float32 [2 * _MOVED + 1] * 2: `explained`, with the zones moved down and to the right."""
    inner = np.zeros_like(features[0])  # the same pixels for all of them
    inner[_MOVED:-_MOVED, _MOVED:-_MOVED] = 1
    spectra = fft.rfft2(zones)

    def sums(picture):
        found = fft.irfft2(spectra * np.conj(fft.rfft2(picture * inner)), picture.shape)
        return np.roll(found[:, ::-1, ::-1], (_MOVED + 1, _MOVED + 1), (1, 2))[
            :, : 2 * _MOVED + 1, : 2 * _MOVED + 1
        ]

    counts = sums(inner)
    return np.mean([_between(sums(feature), counts) for feature in features], 0)


def _turned(zones):
    """Squares [zones, H, W], turned as a mask may be, by the way."""
    transposed = zones.swapaxes(1, 2)
    return {
        "turned by 180 degrees": zones[:, ::-1, ::-1],
        "mirrored top to bottom": zones[:, ::-1],
        "mirrored left to right": zones[:, :, ::-1],
        "transposed": transposed,
        "transposed and turned by 180 degrees": transposed[:, ::-1, ::-1],
        "turned by 90 degrees": transposed[:, ::-1],
        "turned by -90 degrees": transposed[:, :, ::-1],
    }


def _moved(y, x):
    """In words: by so many pixels down and to the right."""
    steps = [
        f"{abs(n)} pixel{'s' if abs(n) > 1 else ''} {forwards if n > 0 else back}"
        for n, forwards, back in ((y, "down", "up"), (x, "to the right", "to the left"))
        if n
    ]
    return f"moved {' and '.join(steps)}"
