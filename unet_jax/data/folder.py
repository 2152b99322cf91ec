"""A user's own data: a folder of images and a folder of masks, paired by file name."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from unet_jax.data import known_folder
from unet_jax.data.known_folder import KnownFolder
from unet_jax.data.mask_rules import check_masks, check_settings, ignored_numbers
from unet_jax.data.pairs import find_files, find_pairs
from unet_jax.data.pixels import (
    Pixels,
    masks_of,
    memory_for_images,
    pictures_of,
    read_masks,
    read_pictures,
)
from unet_jax.errors import InputError, Problems
from unet_jax.example import (
    IGNORED,
    SPARSE,
    Example,
    annotated_share,
    image_sha256,
    rescaled,
    separated,
    sha256,
)
from unet_jax.files.names import example_stem, is_zarr, page_names
from unet_jax.unread import Facts, Unread, facts_of, in_threads

logger = logging.getLogger("unet_jax")

# Of a cell; beyond, cells are numbered anew, since colours and counts lie in tables by number.
_LARGEST_NUMBER = 2**20


def read_folder(
    images: str | os.PathLike,
    labels: str | os.PathLike,
    *,
    mask_rule: str,
    classes: int,
    ignore_value: int,
    minus_one: str = "",
    channels: int | None = None,
    scale: float = 1.0,
) -> list[Example] | Unread:
    """Reads images with their masks, one example for each page of each file.

    If training would take more than a quarter of the machine's memory, each example is read
    whenever it is needed. Then all files are read twice at the beginning, and what was learnt about
    them is kept in the user's cache until one of them changes.

    An image and its mask have the same name up to the suffix, .tif, .tiff, .png, .zarr or
    .ome.zarr, and the same pages and shape. If the names differ, an ending of the mask's name such
    as _mask, and one of the image's such as _img, is ignored in the comparison. Hidden files are
    left out.

    Args:
      images: the folder of images, all with the same number of channels.
      labels: the folder of masks, with one channel and whole numbers; may be the same folder if
        their names end like a mask's.
      mask_rule: what the numbers of a mask mean.
        'binary': 0 and one other number, such as 255, in all masks; the other is class 1.
        'classes': the class of a pixel, below ``classes``. With an ``ignore_value`` of 0, classes
        begin at 1, as programs for scribbles write them: 1 is class 0.
        'instances': 0 = background, n = cell n, which is class 1; if there are numbers beyond
        1,048,576, cells are numbered anew.
        Under the first two rules, a cell is a 4-connected component of classes other than 0. A
        mask that ignores most of its pixels holds strokes, not cells.
      classes: the number of classes, background included.
      ignore_value: mask pixels of this number are labelled ``IGNORED``; -1 = there are none.
      minus_one: what -1 means if masks hold it. 'background': the other numbers count from there,
        0 = the first cell, or class 1. 'ignored': such pixels are labelled ``IGNORED``.
        '': masks that hold it are refused.
      channels: the number that a trained network takes; by default that of the first image. Grey
        images stored as RGB fit both 1 and 3 channels; by default they are read as 1 if all are
        grey.
      scale: at which a run will see them, for the facts about examples that do not fit into memory.

    Returns:
      The examples in the order of file names, then pages, named ``stem``, or ``stem page k`` with
      k from 0 for files with several pages.

    Raises:
      InputError: a folder is missing or holds no image; a file cannot be read, has no partner or
        does not fit it, with a line for each; the masks break their rule, or look as if another
        rule were meant.
    """
    check_settings(mask_rule, ignore_value, minus_one)
    problems = Problems()
    image_files, mask_files = find_pairs(images, labels, problems)
    if not (image_files and mask_files):
        problems.raise_all()

    ignored = ignored_numbers(ignore_value, minus_one)
    settings = mask_rule, classes, ignore_value, minus_one, channels, scale, memory_for_images()
    kept = known_folder.kept_in([*image_files.values(), *mask_files.values()], settings)
    known = known_folder.load(kept)
    if known:
        problems.raise_all()
        shapes = dict(zip(image_files, known.shapes, strict=True))
        pixels = pictures_of(image_files, shapes), masks_of(mask_files, shapes)
        return Unread(_reader(*pixels, mask_rule, known.background, ignored)[0], known.facts)

    pictures = read_pictures(image_files, images, channels, problems, memory_for_images())
    masks, counts = read_masks(mask_files, problems, np.inf if pictures.in_memory else 0)
    for stem, shape in masks.shapes.items():
        with problems.collected():
            if stem in pictures and shape != pictures.shapes[stem][:3]:
                raise InputError(
                    f"{mask_files[stem]}: pages, height and width are {shape}, expected"
                    f" {pictures.shapes[stem][:3]} as in {image_files[stem].name}"
                )
    background = 0
    with problems.collected():
        background = check_masks(
            mask_files,
            masks,
            counts,
            labels,
            mask_rule=mask_rule,
            classes=classes,
            ignore_value=ignore_value,
            minus_one=minus_one,
        )
    problems.raise_all()

    read, count = _reader(pictures, masks, mask_rule, background, ignored)
    if pictures.in_memory:
        return [read(number) for number in range(count)]
    logger.warning("%s: does not fit into memory, so each image is read when it is needed", images)
    facts = in_threads(lambda number: _facts(read(number), classes, scale), range(count))
    progress = tqdm(facts, "Looking at images", count, unit="image", delay=3, leave=False)
    known = KnownFolder([*pictures.shapes.values()], background, [*progress])
    known_folder.save(kept, known)
    return Unread(read, known.facts)


def _reader(
    pictures: Pixels, masks: Pixels, mask_rule: str, background: int, ignored: list[int]
) -> tuple[Callable[[int], Example], int]:
    """A function that makes the example of each page of each file, by number, and their count."""
    pages = [
        (name, stem, page)
        for stem, shape in pictures.shapes.items()
        for page, name in enumerate(page_names(stem, shape[0]))
    ]

    def read(number: int) -> Example:
        name, stem, page = pages[number]
        truth = _labels_and_cells(masks[stem][page], mask_rule, background, ignored)
        return Example(name, _without_single_channel(pictures[stem][page]), *truth)

    return read, len(pages)


def _facts(example: Example, classes: int, scale: float) -> Facts:
    """Everything that a run needs to know about an example before it trains on it."""
    return facts_of(example, classes)._replace(
        sha256=sha256(example),
        image_sha256=image_sha256(example.image),
        seen=facts_of(separated(rescaled(example, scale)), classes),
    )


def _labels_and_cells(
    mask: np.ndarray, mask_rule: str, background: int, ignored: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The labels and cells of a mask that follows its rule, int32 [H, W] each."""
    is_ignored = np.isin(mask, ignored)
    cells = np.where(is_ignored, 0, mask - np.int32(background))
    labels = cells if mask_rule == "classes" else (cells > 0).astype(np.int32)
    labels = np.where(is_ignored, np.int32(IGNORED), labels)
    if mask_rule == "instances":
        if cells.max() > _LARGEST_NUMBER:
            cells = np.unique(cells, return_inverse=True)[1].reshape(cells.shape).astype(np.int32)
        return labels, cells
    if annotated_share([labels]) < SPARSE:
        return labels, np.zeros_like(labels)
    return labels, connected_cells(labels)


def read_images(path: str | os.PathLike, channels: int) -> list[tuple[str, np.ndarray]]:
    """Reads images without masks, for prediction.

    Args:
      path: a file, or a folder as in ``read_folder``.
      channels: the number that the network takes. Grey images stored as RGB fit both 1 and 3
        channels.

    Returns:
      (name, number [H, W] or, for several channels, [H, W, C]) for each page of each file, named
      and ordered as in ``read_folder``.

    Raises:
      InputError: there is no image, a file cannot be read, or its number of channels differs.
    """
    path = Path(path)
    problems = Problems()
    is_file = path.is_file() or is_zarr(path)
    files = {example_stem(path): path} if is_file else find_files(path, problems)
    pictures = read_pictures(files, path, channels, problems)
    problems.raise_all()
    named: list[tuple[str, np.ndarray]] = []
    for stem, picture in pictures.items():
        planes = map(_without_single_channel, picture)
        named.extend(zip(page_names(stem, len(picture)), planes, strict=True))
    return named


def connected_cells(labels: np.ndarray) -> np.ndarray:
    """Numbers the 4-connected components of all classes except the background.

    Touching classes are one cell, such as a nucleus in its cytoplasm: the metrics and `find_cells`,
    which know only the probability of cell, also treat them like this.

    Args:
      labels: int [H, W], classes; 0 and below are not cell.

    Returns:
      int32 [H, W], the cell each pixel belongs to, 1..n, 0 = none.
    """
    return ndimage.label(labels > 0)[0]


def _without_single_channel(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image
