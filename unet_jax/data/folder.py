"""A user's own data: a folder of images and a folder of masks, paired by file name."""

import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_jax.data.image_files import check_grey_values, grey_as_one_channel, read_image
from unet_jax.errors import InputError, Problems
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share

logger = logging.getLogger("unet_jax")

#: Of the names of image files.
SUFFIXES = (".tif", ".tiff", ".png")
_MASK_RULES = ("binary", "classes", "instances")
_FEW = 20  # classes that masks may be thought to have


def read_folder(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    *,
    mask_rule: str,
    classes: int,
    ignore_value: int,
    channels: int | None = None,
) -> list[Example]:
    """Reads images with their masks, one example for each page of each file.

    An image and its mask have the same name up to the suffix, .tif, .tiff or .png, and the same
    pages and shape. Hidden files are left out.

    Args:
      images: the folder of images, all of the same number of channels.
      labels: the folder of masks, of one channel and whole numbers.
      mask_rule: what the numbers of a mask mean.
        'binary': 0 and one other number, such as 255, in all masks; the other is class 1.
        'classes': the class of a pixel, below ``classes``. With an ``ignore_value`` of 0 they
        begin at 1, as programs for scribbles write them: 1 is class 0.
        'instances': 0 = background, n = cell n, which is class 1.
        Under the first two rules a cell is a 4-connected component of classes other than 0. A
        mask that ignores most of its pixels holds strokes, and no cells.
      classes: the number of classes, background included.
      ignore_value: mask pixels of this number are labelled ``IGNORED``; -1 = there are none.
      channels: what a trained network takes; by default what the first image has. Grey images
        stored as RGB fit 1 channel and 3; by default they are read as 1 if all are grey.

    Returns:
      The examples in the order of file names, then pages, named ``stem``, or ``stem page k`` with
      k from 0 for files of several pages.

    Raises:
      InputError: a folder is missing or holds no image; each file that cannot be read, has no
        partner, or does not fit it; the masks break their rule.
    """
    if mask_rule not in _MASK_RULES:
        raise InputError(f"mask_rule is {mask_rule!r}, expected one of {', '.join(_MASK_RULES)}")
    if ignore_value == 0 and mask_rule != "classes":
        raise InputError(
            f"ignore_value is 0, the background under mask_rule {mask_rule!r}; expected another, or"
            " mask_rule 'classes', whose classes then begin at 1"
        )
    problems = Problems()
    image_files, mask_files = _find_files(images, problems), _find_files(labels, problems)
    if not (image_files and mask_files):
        problems.raise_all()
    for files, others, missing in (
        (image_files, mask_files, f"a mask in {labels}"),
        (mask_files, image_files, f"an image in {images}"),
    ):
        alone = [path.name for stem, path in files.items() if stem not in others]
        with problems.collected():
            if alone:
                raise InputError(
                    f"{len(alone)} file(s) without {missing}: {_first(alone, 3)}; expected the"
                    " same names"
                )
    pictures = _read_pictures(image_files, images, channels, problems)
    masks = _read_masks(mask_files, labels, problems)
    for stem, mask in masks.items():
        with problems.collected():
            if stem in pictures and mask.shape != pictures[stem].shape[:3]:
                raise InputError(
                    f"{mask_files[stem]}: pages, height and width are {mask.shape}, expected"
                    f" {pictures[stem].shape[:3]} as in {image_files[stem].name}"
                )
    with problems.collected():
        _check_values(mask_files, masks, labels, mask_rule, classes, ignore_value)
    problems.raise_all()

    examples = []
    for stem, picture in pictures.items():
        for name, image, mask in zip(
            _page_names(stem, len(picture)), picture, masks[stem], strict=True
        ):
            ignored = mask == ignore_value
            cells = np.where(ignored, 0, mask)
            target = (cells > 0).astype(np.int32)
            if mask_rule == "classes":
                target = cells - 1 if ignore_value == 0 else cells
            target = np.where(ignored, np.int32(IGNORED), target)
            instances = cells if mask_rule == "instances" else connected_cells(target)
            if mask_rule != "instances" and annotated_share([target]) < SPARSE:
                instances = np.zeros_like(target)
            examples.append(Example(name, _without_single_channel(image), target, instances))
    return examples


def read_images(path: str | os.PathLike, channels: int) -> list[tuple[str, np.ndarray]]:
    """Reads images without masks, for prediction.

    Args:
      path: a file, or a folder as in ``read_folder``.
      channels: what the network takes. Grey images stored as RGB fit 1 channel and 3.

    Returns:
      (name, number [H, W] or, for several channels, [H, W, C]) for each page of each file, named
      and ordered as by ``read_folder``.

    Raises:
      InputError: nothing is there, a file cannot be read, or has other channels.
    """
    path = Path(path)
    named, problems = [], Problems()
    files = {path.stem: path} if path.is_file() else _find_files(path, problems)
    pictures = _read_pictures(files, path, channels, problems)
    problems.raise_all()
    for stem, picture in pictures.items():
        planes = map(_without_single_channel, picture)
        named.extend(zip(_page_names(stem, len(picture)), planes, strict=True))
    return named


def connected_cells(labels: np.ndarray) -> np.ndarray:
    """Numbers the 4-connected components of all classes but the background.

    Touching classes are one cell, such as a nucleus in its cytoplasm: so the metrics and
    `find_cells`, which know the probability of cell alone, take them too.

    Args:
      labels: int [H, W], classes; 0 and below are no cell.

    Returns:
      int32 [H, W], the cell each pixel belongs to, 1..n, 0 = none.
    """
    return ndimage.label(labels > 0)[0]


def split_by_stem(
    examples: Sequence[Example], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Example]]:
    """Splits examples at random so that the pages of a file stay together.

    The pages of a single file are cut into three blocks of neighbours: training, validation, test.
    The order of the examples does not matter.

    Args:
      examples: as named by ``read_folder``.
      validation_fraction: share of the files, in (0, 1), rounded to at least one file.
      test_fraction: share of the files, in (0, 1), rounded to at least one file.
      seed: of the shuffle.

    Returns:
      The examples of 'train', 'validation' and 'test', none of them empty.

    Raises:
      InputError: too few files, or pages of the only file; a fraction or seed out of range.
    """
    if not (0 < validation_fraction < 1 and 0 < test_fraction < 1 and seed >= 0):
        raise InputError(
            f"validation_fraction {validation_fraction}, test_fraction {test_fraction} and the"
            f" split's seed {seed}: expected fractions in (0, 1) and a seed of 0 or more"
        )
    files: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: stem_and_page(example.name)):
        files.setdefault(stem_and_page(example.name)[0], []).append(example)
    if len(files) == 1:
        kind = "page(s) of one file"
        groups = [[page] for pages in files.values() for page in pages]
    else:
        kind = "file(s)"
        order = np.random.default_rng(seed).permutation(len(files))
        groups = [list(files.values())[index] for index in order]

    validation = max(1, round(validation_fraction * len(groups)))
    test = max(1, round(test_fraction * len(groups)))
    train = len(groups) - validation - test
    if train < 1:
        raise InputError(
            f"{len(groups)} {kind} cannot be split into training, validation_fraction"
            f" {validation_fraction} and test_fraction {test_fraction}, expected at least one each"
        )
    parts = {
        "train": groups[:train],
        "validation": groups[train : train + validation],
        "test": groups[train + validation :],
    }
    return {name: [page for group in part for page in group] for name, part in parts.items()}


def _find_files(folder: str | os.PathLike, problems: Problems) -> dict[str, Path]:
    """The images of a folder by their stem, sorted; if there are none, that is a problem."""
    folder = Path(folder)
    files: dict[str, Path] = {}
    with problems.collected():
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder, expected one with {', '.join(SUFFIXES)}")
        for path in sorted(folder.iterdir(), key=lambda path: (path.stem, path.suffix)):
            if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            with problems.collected():
                if path.stem in files:
                    other = files[path.stem].name
                    raise InputError(f"{path}: {other} has the same name, expected one")
            files[path.stem] = path
        if not files:
            others = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
            found = f" but {_first(others, 3)}" if others else ""
            raise InputError(f"{folder}: holds no image{found}, expected {', '.join(SUFFIXES)}")
    return files


def _read_pictures(
    files: dict[str, Path], source: str | os.PathLike, channels: int | None, problems: Problems
) -> dict[str, np.ndarray]:
    """Number [pages, H, W, C] by stem, C the same for all; without those that have problems."""
    pictures = _read_all(files, problems)
    if channels in (None, 1):
        grey = grey_as_one_channel(list(pictures.values()), str(source))
        pictures = dict(zip(pictures, grey, strict=True))
    reason = "that the network takes"
    for stem, picture in pictures.items():
        found = picture.shape[-1]
        if channels is None:
            channels, reason = found, f"as in {files[stem].name}"
        with problems.collected():
            if found != channels:
                raise InputError(
                    f"{files[stem]}: has {found} channel(s), expected {channels} {reason}"
                )
            check_grey_values(files[stem], picture)
    return pictures


def _read_all(files: dict[str, Path], problems: Problems) -> dict[str, np.ndarray]:
    """Number [pages, H, W, C] by stem, without those that cannot be read."""
    pictures = {}
    for stem, path in files.items():
        with problems.collected():
            pictures[stem] = read_image(path)
    return pictures


def _read_masks(
    files: dict[str, Path], folder: str | os.PathLike, problems: Problems
) -> dict[str, np.ndarray]:
    """int32 [pages, H, W] by stem, without those that have problems."""
    raw = _read_all(files, problems)
    masks = {}
    for stem, mask in zip(raw, grey_as_one_channel(list(raw.values()), str(folder)), strict=True):
        with problems.collected():
            masks[stem] = _whole_numbers(files[stem], mask)
    return masks


def _whole_numbers(path: Path, mask: np.ndarray) -> np.ndarray:
    """int32 [pages, H, W]."""
    if mask.shape[-1] != 1:
        raise InputError(
            f"{path}: has {mask.shape[-1]} channels, expected one, or R = G = B in all masks"
        )
    low, high = float(mask.min()), float(mask.max())
    if low < -(2**31) or high >= 2**31 or (mask % 1 != 0).any():
        raise InputError(
            f"{path}: mask values from {low:g} to {high:g}, expected whole numbers of 32 bits"
        )
    return mask[..., 0].astype(np.int32)


def _check_values(
    files: dict[str, Path],
    masks: dict[str, np.ndarray],
    folder: str | os.PathLike,
    mask_rule: str,
    classes: int,
    ignore_value: int,
) -> None:
    """Refuses masks that break their rule."""
    ignored = set() if ignore_value == -1 else {ignore_value}
    found = {stem: set(np.unique(mask).tolist()) - ignored for stem, mask in masks.items()}
    values = set().union(*found.values())
    highest = classes if ignore_value == 0 else classes - 1
    fitting = ["classes"] if ignore_value == 0 else list(_MASK_RULES)
    fitting = [rule for rule in _fitting_rules(values, highest) if rule in fitting]
    if mask_rule not in fitting:
        # Each mask may keep the rule, as 0/1 and 0/255 do, and all together break it.
        breaking = [s for s in masks if mask_rule not in _fitting_rules(found[s], highest)]
        source, shown = (files[breaking[0]], found[breaking[0]]) if breaking else (folder, values)
        others = [files[stem].name for stem in breaking[1:]]
        nor = f", nor do those of {_first(others, 3)}" if others else ""
        remedies = [repr(rule) for rule in fitting]
        top, first = max(values), classes - highest
        for kept, also in ((values, ""), (values - {top}, f" and ignore_value {top}")):
            if kept and min(kept) >= 0 and highest < max(kept) < _FEW:
                remedies.append(f"'classes' with {max(kept) + first} classes{also}")
                break
        if mask_rule in _fitting_rules(values - {top}, highest):
            remedies.append(f"{mask_rule!r} with ignore_value {top}")
        if top == classes and 0 in values:
            remedies.append("'classes' with ignore_value 0 if 0 means not annotated")
        raise InputError(
            f"{source}: mask values {_first(sorted(shown), 10)} do not fit mask_rule {mask_rule!r}"
            f" with {classes} classes{nor}; all masks fit {', or '.join(remedies) or 'no rule'}"
        )
    if mask_rule == "instances" and all(len(found[stem] - {0}) <= 1 for stem in masks):
        logger.warning("%s: each mask holds one cell at most; 'binary' finds several", folder)
    if mask_rule == "binary" and values - {0, 1}:
        logger.warning("%s: mask values 0 and %d are read as classes 0 and 1", folder, max(values))


def _fitting_rules(values: set[int], highest: int) -> list[str]:
    if min(values, default=0) < 0:
        return []
    fits = {
        "binary": len(values - {0}) <= 1,
        "classes": max(values, default=0) <= highest,
        "instances": True,
    }
    return [rule for rule in _MASK_RULES if fits[rule]]


def _first(values: Sequence, count: int) -> str:
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")


def _page_names(stem: str, pages: int) -> list[str]:
    return [stem] if pages == 1 else [f"{stem} page {page}" for page in range(pages)]


def file_stem(path: Path) -> str:
    """The name of an image file without its suffix, of which .ome.tif is one.

    Composed (NFC): macOS stores an "ä" in two parts, and other systems in one.
    """
    stem = unicodedata.normalize("NFC", path.stem)
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def stem_and_page(name: str) -> tuple[str, int]:
    """The file's stem and the page, from 0, out of an example's name."""
    match = re.fullmatch(r"(.*) page (\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def _without_single_channel(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image
