"""A user's own data: a folder of images and a folder of masks, paired by file name."""

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_jax.data.mask_rules import MASK_RULES, check_masks, ignored_numbers
from unet_jax.errors import InputError, Problems, listed
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share
from unet_jax.files.images import (
    check_grey_values,
    grey_as_one_channel,
    read_image,
    read_mask,
)

logger = logging.getLogger("unet_jax")

#: Of the names of image files.
SUFFIXES = (".tif", ".tiff", ".png")
_MINUS_ONE = ("", "background", "ignored")
# What programs and people add to the name of an image, such as cell_img.tif and cell_masks.tif.
_MASK_ENDING = re.compile(
    r"[ _.-]+((cp|simple)[ _-])?(masks?|labels?|labell?ed|seg|segmentation|gt|annotations?)$",
    re.IGNORECASE,
)
_IMAGE_ENDING = re.compile(r"[ _.-]+(images?|img|raw)$", re.IGNORECASE)
_LEAST = 32  # pixels of a block that is cut from an image, along its longer side


def read_folder(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    *,
    mask_rule: str,
    classes: int,
    ignore_value: int,
    minus_one: str = "",
    channels: int | None = None,
) -> list[Example]:
    """Reads images with their masks, one example for each page of each file.

    An image and its mask have the same name up to the suffix, .tif, .tiff or .png, and the same
    pages and shape. Where they have not, an ending of the mask's name such as _mask, and one of
    the image's such as _img, is left out of the comparison. Hidden files are left out.

    Args:
      images: the folder of images, all of the same number of channels.
      labels: the folder of masks, of one channel and whole numbers; the same folder, if their
        names end like a mask's.
      mask_rule: what the numbers of a mask mean.
        'binary': 0 and one other number, such as 255, in all masks; the other is class 1.
        'classes': the class of a pixel, below ``classes``. With an ``ignore_value`` of 0 they
        begin at 1, as programs for scribbles write them: 1 is class 0.
        'instances': 0 = background, n = cell n, which is class 1.
        Under the first two rules a cell is a 4-connected component of classes other than 0. A
        mask that ignores most of its pixels holds strokes, and no cells.
      classes: the number of classes, background included.
      ignore_value: mask pixels of this number are labelled ``IGNORED``; -1 = there are none.
      minus_one: what -1 means where masks hold it. 'background': the other numbers count from
        there, 0 = the first cell, or class 1. 'ignored': such pixels are labelled ``IGNORED``.
        '': masks that hold it are refused.
      channels: what a trained network takes; by default what the first image has. Grey images
        stored as RGB fit 1 channel and 3; by default they are read as 1 if all are grey.

    Returns:
      The examples in the order of file names, then pages, named ``stem``, or ``stem page k`` with
      k from 0 for files of several pages.

    Raises:
      InputError: a folder is missing or holds no image; each file that cannot be read, has no
        partner, or does not fit it; the masks break their rule, or look like those of another.
    """
    if mask_rule not in MASK_RULES:
        raise InputError(f"mask_rule is {mask_rule!r}, expected one of {', '.join(MASK_RULES)}")
    if minus_one not in _MINUS_ONE:
        raise InputError(f"minus_one is {minus_one!r}, expected 'background', 'ignored' or ''")
    if ignore_value == 0 and mask_rule != "classes" and minus_one != "background":
        raise InputError(
            f"ignore_value is 0, the background under mask_rule {mask_rule!r}; expected another, or"
            " mask_rule 'classes', whose classes then begin at 1"
        )
    problems = Problems()
    image_files, mask_files = _find_pairs(images, labels, problems)
    if not (image_files and mask_files):
        problems.raise_all()
    pictures = _read_pictures(image_files, images, channels, problems)
    masks = _read_masks(mask_files, labels, problems)
    for stem, mask in masks.items():
        with problems.collected():
            if stem in pictures and mask.shape != pictures[stem].shape[:3]:
                raise InputError(
                    f"{mask_files[stem]}: pages, height and width are {mask.shape}, expected"
                    f" {pictures[stem].shape[:3]} as in {image_files[stem].name}"
                )
    background = 0
    with problems.collected():
        background = check_masks(
            mask_files,
            masks,
            labels,
            mask_rule=mask_rule,
            classes=classes,
            ignore_value=ignore_value,
            minus_one=minus_one,
        )
    problems.raise_all()

    ignored_values = ignored_numbers(ignore_value, minus_one)
    examples = []
    for stem, picture in pictures.items():
        for name, image, mask in zip(
            _page_names(stem, len(picture)), picture, masks[stem], strict=True
        ):
            ignored = np.isin(mask, ignored_values)
            cells = np.where(ignored, 0, mask - np.int32(background))
            target = cells if mask_rule == "classes" else (cells > 0).astype(np.int32)
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

    The pages of a single file are cut into three blocks of neighbours: training, validation, test;
    if there are fewer than three, or two files, so is each page, along its longer side. Where
    training, validation or test would be without a cell, a file is swapped for one with cells.
    The order of the examples does not matter.

    Args:
      examples: as named by ``read_folder``.
      validation_fraction: share of the files, in (0, 1), rounded to at least one file.
      test_fraction: share of the files, in (0, 1), rounded to at least one file.
      seed: of the shuffle.

    Returns:
      The examples of 'train', 'validation' and 'test', none of them empty; blocks of an image are
      named such as ``stem rows 0 to 179``.

    Raises:
      InputError: too few files, or pixels of the only ones; blocks in which nothing is annotated; a
        fraction or seed out of range.
    """
    if not (0 < validation_fraction < 1 and 0 < test_fraction < 1 and seed >= 0):
        raise InputError(
            f"validation_fraction {validation_fraction}, test_fraction {test_fraction} and the"
            f" split's seed {seed}: expected fractions in (0, 1) and a seed of 0 or more"
        )
    files: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: stem_and_page(example.name)):
        files.setdefault(stem_and_page(example.name)[0], []).append(example)
    if len(files) in (1, 2) and not (len(files) == 1 and len(examples) > 2):
        pages = [page for pages in files.values() for page in pages]
        return _cut(pages, len(files), validation_fraction, test_fraction)
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
    if len(files) > 1:
        _share_cells(parts)
    return {name: [page for group in part for page in group] for name, part in parts.items()}


def _share_cells(parts: dict[str, list[list[Example]]]) -> None:
    """Swaps files so that each part has one with a cell, the first parts first."""

    def with_cell(part):
        return [i for i, file in enumerate(part) if any((page.labels > 0).any() for page in file)]

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
    """Cuts each page along its longer side into a block for each part, with a notice."""
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
                f"{page.name}: {height} x {width} pixels are too few to be cut into training,"
                f" validation_fraction {validation_fraction} and test_fraction {test_fraction},"
                f" expected at least {_LEAST} rows or columns each, or at least 3 files"
            )
        for part, start, end in zip(parts.values(), (0, *ends), ends, strict=False):
            part.append(_block(page, start, end))
    blocks = {part: listed([page.name for page in cut], 3) for part, cut in parts.items()}
    for part, cut in parts.items():
        if all((page.labels == IGNORED).all() for page in cut):
            raise InputError(
                f"Nothing is annotated in {blocks[part]}, the {part} split of {files} file(s),"
                " expected something there, or at least 3 files"
            )
    logger.warning(
        "%d annotated file(s) are too few to be divided, so each image is cut: %s for training,"
        " %s for validation, %s for the test",
        *(files, *blocks.values()),
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


def _find_pairs(
    images: str | os.PathLike, labels: str | os.PathLike, problems: Problems
) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images of a folder by their stem, and by the same stem their masks."""
    image_files = _find_files(images, problems)
    if os.path.realpath(images) != os.path.realpath(labels):
        mask_files = _find_files(labels, problems)
    elif image_files:
        image_files, mask_files = _part(image_files)
        with problems.collected():
            if not (image_files and mask_files):
                raise InputError(
                    f"{images}: is given for images and masks, but no names in it tell which are"
                    " which; expected another folder for the masks, or x_mask.tif beside x.tif"
                )
    else:
        mask_files = {}
    if not (image_files and mask_files):
        return image_files, mask_files

    pairs, alone = _pair(image_files, mask_files, labels)
    masked = {_without_image_ending(image_files[stem]): stem for stem in pairs}
    for path in alone:
        stem = masked.get(_without_both_endings(path))
        with problems.collected():
            if stem is not None:
                raise InputError(
                    f"{path}: {image_files[stem].name} has the mask {pairs[stem].name}, expected"
                    " one"
                )
    for files, lonely, missing in (
        (image_files, [s for s in image_files if s not in pairs], f"a mask in {labels}"),
        (
            mask_files,
            [p.stem for p in alone if _without_both_endings(p) not in masked],
            f"an image in {images}",
        ),
    ):
        looks = Counter(_composed(path.name) for path in files.values())
        names = [files[stem].name for stem in lonely]
        names = [name if looks[_composed(name)] == 1 else ascii(name) for name in names]
        with problems.collected():
            if names:
                raise InputError(
                    f"{len(names)} file(s) without {missing}: {listed(names, 3)}; expected the"
                    " same names"
                )
    return image_files, {s: pairs[s] for s in image_files if s in pairs} | {
        path.stem: path for path in alone
    }


def _pair(
    image_files: dict[str, Path], mask_files: dict[str, Path], labels: str | os.PathLike
) -> tuple[dict[str, Path], list[Path]]:
    """The masks by the stem of their image, exact names first, and those that have none."""
    pairs: dict[str, Path] = {}
    alone = list(mask_files.values())
    for of_image, of_mask in (
        (lambda path: path.stem, lambda path: path.stem),
        (file_stem, file_stem),
        (_without_image_ending, _without_both_endings),
    ):
        named = {of_mask(path): path for path in alone}
        found = {
            stem: named.pop(of_image(path))
            for stem, path in image_files.items()
            if stem not in pairs and of_image(path) in named
        }
        pairs |= found
        paired = set(found.values())
        alone = [path for path in alone if path not in paired]
    if found:
        stem, mask = next(iter(found.items()))
        logger.warning(
            "%s: %d mask(s) are paired without the ending of a name, such as %s with %s",
            *(labels, len(found), mask.name, image_files[stem].name),
        )
    return pairs, alone


def _find_files(folder: str | os.PathLike, problems: Problems) -> dict[str, Path]:
    """The images of a folder by their stem, sorted; if there are none, that is a problem."""
    folder = Path(folder)
    files: dict[str, Path] = {}
    with problems.collected():
        if folder.is_file():
            raise InputError(f"{folder}: is a file, expected the folder that holds it")
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder, expected one with {', '.join(SUFFIXES)}")
        present = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in sorted(present, key=lambda path: (path.stem, path.suffix)):
            if not has_image_suffix(path):
                continue
            with problems.collected():
                if path.stem in files:
                    other = files[path.stem].name
                    raise InputError(f"{path}: {other} has the same name, expected one")
            files[path.stem] = path
        others = sorted(
            path.name for path in present if not has_image_suffix(path) and path.is_file()
        )
        if files and others:
            logger.warning(
                "%s: %d file(s) are left out, as only %s are read: %s",
                *(folder, len(others), ", ".join(SUFFIXES), listed(others, 3)),
            )
        if not files:
            folders = [path.name for path in present if any(map(has_image_suffix, path.glob("*")))]
            if folders:
                raise InputError(
                    f"{folder}: holds no image itself, but its folder(s)"
                    f" {listed(sorted(folders), 3)} do; expected such a folder"
                )
            found = f"holds {listed(others, 3)}, no image" if others else "holds no image"
            raise InputError(f"{folder}: {found}, expected {', '.join(SUFFIXES)}")
    return files


def _part(files: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The images of one folder and their masks, each by their stem: x.tif and x_mask.tif."""
    names = {stem: file_stem(path) for stem, path in files.items()}
    # Where there is x_seg_mask.tif, x_seg.tif is an image.
    masked = {_MASK_ENDING.sub("", n) for n in names.values() if _MASK_ENDING.search(n)}
    are_masks = {s for s, name in names.items() if _MASK_ENDING.search(name) and name not in masked}
    return (
        {stem: path for stem, path in files.items() if stem not in are_masks},
        {stem: path for stem, path in files.items() if stem in are_masks},
    )


def _without_image_ending(path: Path) -> str:
    return _IMAGE_ENDING.sub("", file_stem(path))


def _without_both_endings(path: Path) -> str:
    """The name of a mask without its ending and that of its image, as of x_img_mask.tif."""
    return _IMAGE_ENDING.sub("", _MASK_ENDING.sub("", file_stem(path)))


def _read_pictures(
    files: dict[str, Path], source: str | os.PathLike, channels: int | None, problems: Problems
) -> dict[str, np.ndarray]:
    """Number [pages, H, W, C] by stem, C the same for all; without those that have problems."""
    pictures = _read_all(files, read_image, problems)
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


def _read_all(
    files: dict[str, Path], read: Callable[[Path], np.ndarray], problems: Problems
) -> dict[str, np.ndarray]:
    """Number [pages, H, W, C] by stem, without those that cannot be read."""
    pictures = {}
    for stem, path in files.items():
        with problems.collected():
            pictures[stem] = read(path)
    return pictures


def _read_masks(
    files: dict[str, Path], folder: str | os.PathLike, problems: Problems
) -> dict[str, np.ndarray]:
    """int32 [pages, H, W] by stem, without those that have problems."""
    raw = _read_all(files, read_mask, problems)
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
    has_fractions = (mask % 1 != 0).any()
    if low < -(2**31) or high >= 2**31 or has_fractions:
        remedy = "; threshold probabilities and soft edges" if has_fractions else ""
        raise InputError(
            f"{path}: mask values from {low:g} to {high:g}, expected whole numbers of 32 bits"
            f"{remedy}"
        )
    return mask[..., 0].astype(np.int32)


def _page_names(stem: str, pages: int) -> list[str]:
    return [stem] if pages == 1 else [f"{stem} page {page}" for page in range(pages)]


def has_image_suffix(path: Path) -> bool:
    """Whether a file is a TIFF or PNG by its name."""
    return path.suffix.lower() in SUFFIXES


def file_stem(path: Path) -> str:
    """The name of an image file without its suffix, of which .ome.tif is one.

    Composed (NFC): macOS stores an "ä" in two parts, and other systems in one.
    """
    stem = _composed(path.stem)
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def stem_and_page(name: str) -> tuple[str, int]:
    """The file's stem and the page, from 0, out of an example's name."""
    match = re.fullmatch(r"(.*) page (\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def _without_single_channel(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image
