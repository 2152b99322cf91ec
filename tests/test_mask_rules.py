"""What is said of each kind of mask under each rule."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unet_jax.data.mask_rules import MASK_RULES, check_masks
from unet_jax.data.pixels import Pixels
from unet_jax.errors import InputError


def made_up_cells(seed):
    """int32 [64, 64], ten round cells that do not touch."""
    rng = np.random.default_rng(seed)
    cells, number = np.zeros((64, 64), np.int32), 0
    y, x = np.mgrid[:64, :64]
    while number < 10:
        (row, column), radius = rng.integers(6, 58, 2), rng.integers(3, 6)
        distance = np.hypot(y - row, x - column)
        if not cells[distance < radius + 2].any():
            number += 1
            cells[distance < radius] = number
    return cells


def jpeg(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "JPEG")
    return np.asarray(Image.open(file))


def resized(mask):
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize((90, 90), Image.BILINEAR))


def nuclei(cells):
    """1 in the cytoplasm, 2 in the nucleus."""
    return (cells > 0) + 1 * ndimage.binary_erosion(cells > 0)


def with_border(cells, numbers):
    """255 around each cell, as Pascal VOC has it."""
    around = ndimage.binary_dilation(cells > 0) & (cells == 0)
    return np.where(around, 255, numbers)


def tissue(cells):
    """Numbers without a gap: each pixel has that of the nearest cell."""
    _, nearest = ndimage.distance_transform_edt(cells == 0, return_indices=True)
    return cells[tuple(nearest)]


def fan(_):
    """A large cell with the highest number, and twelve narrow ones around it."""
    y, x = np.mgrid[:24, :24] - 12.0
    distance, turn = np.hypot(y, x), np.arctan2(y, x) % (2 * np.pi)
    return np.where(distance < 6, 13, np.where(distance < 8, 1 + turn // (np.pi / 6), 0))


FROM_1 = "no mask holds 0, the background; all masks fit 'classes' with ignore_value 0"
THRESHOLD = (
    "(also in b.tif, c.tif), as after smoothing, resizing or saving as JPEG; threshold the masks,"
    " and read them as 'binary'"
)
READ_AS_0_AND_1 = "masks: mask values 0 and 255 are read as classes 0 and 1"
ONE_CELL = "masks: each mask is read as at most one cell; mask_rule 'binary' would find several"
PIECES = "masks: most numbers occur in several separate pieces, but each number is read as one cell"
CLASSES = f"{PIECES}; 'classes' reads them as classes"
MARK = "masks: 255 is read as a cell; if it means not annotated, set ignore_value to 255"
CELLS = "c.tif; all masks fit 'instances'"
MINUS_ONE = "what -1 means: 'background' (0 is then the first cell, or class 1) or 'ignored'"
MINUS_ONE_TOO = "what -1 means: 'ignored' or 'background' (0 is then the first cell, or class 1)"
NO_RULE = (
    ": most of them occur in several separate pieces, like grey values; no rule fits all masks"
)

# Each with the end of what is said if it is read as binary, as classes (two) and as instances.
KINDS = {
    "0 and 1": (lambda cells: cells > 0, "", "", ONE_CELL),
    "0 and 255": (
        lambda cells: 255 * (cells > 0),
        READ_AS_0_AND_1,
        "c.tif; all masks fit 'binary'",
        ONE_CELL,
    ),
    "0 and 255, one cell each": (
        lambda cells: 255 * (cells == 1),
        READ_AS_0_AND_1,
        "c.tif; all masks fit 'binary'",
        "",
    ),
    "1 and 2": (lambda cells: 1 + (cells > 0), FROM_1, FROM_1, FROM_1),
    "1 and 2, one cell each": (lambda cells: 1 + (cells == 1), FROM_1, FROM_1, FROM_1),
    "classes from 0": (
        nuclei,
        "c.tif; all masks fit 'classes' with 3 classes, or 'binary' with ignore_value 2, or"
        " 'classes' with ignore_value 0 if 0 means not annotated",
        "c.tif; all masks fit 'classes' with 3 classes, or 'classes' with ignore_value 2, or"
        " 'classes' with ignore_value 0 if 0 means not annotated",
        CLASSES,
    ),
    "classes from 1": (
        lambda cells: 1 + nuclei(cells),
        *(3 * [f"{FROM_1} and 3 classes"]),
    ),
    "smooth": (
        lambda cells: np.rint(ndimage.gaussian_filter(255.0 * (cells > 0), 1)),
        *(3 * [f"a.tif: 59 values lie between 0 and 255 {THRESHOLD}"]),
    ),
    "smooth, 16 bit": (
        lambda cells: np.rint(ndimage.gaussian_filter(65535.0 * (cells > 0), 1)),
        *(3 * [THRESHOLD]),
    ),
    "JPEG": (lambda cells: jpeg(255 * (cells > 0)), *(3 * [THRESHOLD])),
    "resized": (lambda cells: resized(255 * (cells > 0)), *(3 * [THRESHOLD])),
    "numbered cells": (
        lambda cells: cells,
        *(2 * [f"{CELLS}, or 'classes' with 11 classes"]),
        "",
    ),
    "numbers up to 60,000": (lambda cells: 6000 * cells, CELLS, CELLS, ""),
    "numbered tissue": (tissue, *(2 * [f"{CELLS}, or 'classes' with 11 classes"]), ""),
    "two pieces each": (
        lambda cells: (cells + 1) // 2,
        *(2 * ["c.tif; all masks fit 'classes' with 6 classes"]),
        CLASSES,
    ),
    "cells and a border": (
        lambda cells: with_border(cells, cells > 0),
        "c.tif; all masks fit 'binary' with ignore_value 255",
        "c.tif; all masks fit 'classes' with ignore_value 255",
        MARK,
    ),
    "numbered cells and a border": (
        lambda cells: with_border(cells, cells),
        *(
            2
            * [
                f"{CELLS} with ignore_value 255, or 'classes' with 11 classes and ignore_value"
                " 255, or 'instances'"
            ]
        ),
        MARK,
    ),
    "-1, 0 and 1": (
        lambda cells: np.where(cells > 5, -1, cells > 0),
        *(3 * [MINUS_ONE_TOO]),
    ),
    "-1 and numbered cells": (
        lambda cells: np.where(cells == 0, -1, cells),
        *(3 * [MINUS_ONE]),
    ),
    "grey values": (
        lambda cells: np.random.default_rng(0).integers(0, 256, cells.shape),
        *(NO_RULE, NO_RULE, PIECES),
    ),
    "narrow cells around a large one": (
        fan,
        *(2 * [f"{CELLS}, or 'classes' with 14 classes"]),
        "",
    ),
    "smooth specks": (
        lambda cells: np.rint(ndimage.gaussian_filter(255.0 * (cells == 1), 1)),
        *(3 * ["threshold the masks, and read them as 'binary'"]),
    ),
    "0, 128 and 255": (
        lambda cells: np.array([0, 128, 255])[nuclei(cells)],
        "c.tif; all masks fit 'binary' with ignore_value 255",
        "no rule fits all masks; if they are classes, number them from 0 to 2",
        PIECES,
    ),
    "nothing": (lambda cells: 0 * cells, "", "", ""),
}


def said(caplog, masks, **options):
    """The refusal or the notice, '' for none."""
    masks = {stem: np.asarray(mask).astype(np.int32)[None] for stem, mask in masks.items()}
    files = {stem: Path(f"{stem}.tif") for stem in masks}
    shapes = {stem: mask.shape for stem, mask in masks.items()}
    pixels = {stem: Counter(mask.ravel().tolist()) for stem, mask in masks.items()}
    options = {"classes": 2, "ignore_value": -1, "minus_one": ""} | options
    try:
        check_masks(files, Pixels(shapes, masks.__getitem__), pixels, "masks", **options)
    except InputError as error:
        assert not caplog.records
        return str(error)
    assert len(caplog.records) <= 1
    return "".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("rule", MASK_RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_of_each_kind_of_mask(kind, rule, caplog):
    make, *expected = KINDS[kind]
    masks = {stem: make(made_up_cells(seed)) for seed, stem in enumerate("abc")}
    text = said(caplog, masks, mask_rule=rule)
    end = expected[MASK_RULES.index(rule)]
    assert text.endswith(end) and bool(text) == bool(end), text


@pytest.mark.parametrize("rule", ["binary", "classes"])
@pytest.mark.parametrize("numbers", [(1, 255, 255), (1, 2, 3)])
def test_masks_that_name_one_thing_by_several_numbers(caplog, numbers, rule):
    """Reading one of them as ignored would throw all cells of some masks away."""
    masks = {s: n * (made_up_cells(n) > 0) for s, n in zip("abc", numbers, strict=True)}
    assert said(caplog, masks, mask_rule=rule).endswith(
        ": each mask holds one number besides 0, but not the same one in all; write the same"
        " number in all, and read them as 'binary'"
    )


def test_classes_from_1_may_lie_in_whole_regions(caplog):
    masks = {"a": 1 + np.indices((64, 64))[0] // 16}
    assert said(caplog, masks, mask_rule="classes", classes=4).endswith(f": {FROM_1}")
    assert said(caplog, masks, mask_rule="instances") == ""


def test_cells_without_background_are_read_beside_ignored_pixels(caplog):
    masks = {"a": np.where(made_up_cells(0) > 0, 1 + (np.arange(64) > 32), 255)}
    assert said(caplog, masks, mask_rule="instances", ignore_value=255).startswith(PIECES)


def test_one_smooth_mask_among_good_ones_is_named(caplog):
    masks = {stem: made_up_cells(seed) for seed, stem in enumerate("abc")}
    masks["b"] = np.rint(ndimage.gaussian_filter(255.0 * (masks["b"] > 0), 1))
    text = said(caplog, masks, mask_rule="instances")
    assert text.startswith("b.tif: ") and " values lie between 0 and 255, as after" in text


def test_classes_that_fit_but_count_from_1_are_noticed(caplog):
    masks = {"a": 1 + (made_up_cells(0) > 0)}
    assert said(caplog, masks, mask_rule="classes", classes=3) == (
        "masks: no mask holds 0, the background; if classes begin at 1, set ignore_value to 0"
    )
    caplog.clear()
    assert said(caplog, masks, mask_rule="classes", ignore_value=0) == ""


def test_large_masks_are_looked_at_in_their_middle(caplog):
    mask = np.zeros((3000, 1200), np.int32)
    mask[1400:1410, 600:610] = mask[1500:1510, 600:610] = 1
    assert said(caplog, {"a": mask}, mask_rule="instances") == ONE_CELL
