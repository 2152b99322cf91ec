"""A user's own data: a folder of images and a folder of masks, paired by file name."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_jax.data.mask_rules import check_masks, check_settings, ignored_numbers
from unet_jax.data.pairs import find_files, find_pairs
from unet_jax.errors import InputError, Problems
from unet_jax.example import IGNORED, SPARSE, Example, annotated_share
from unet_jax.files.images import check_grey_values, grey_as_one_channel, read_image, read_mask
from unet_jax.files.names import example_stem, is_zarr, page_names


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

    An image and its mask have the same name up to the suffix, .tif, .tiff, .png, .zarr or
    .ome.zarr, and the same pages and shape. Where they have not, an ending of the mask's name such
    as _mask, and one of the image's such as _img, is left out of the comparison. Hidden files are
    left out.

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
    check_settings(mask_rule, ignore_value, minus_one)
    problems = Problems()
    image_files, mask_files = find_pairs(images, labels, problems)
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

    ignored = ignored_numbers(ignore_value, minus_one)
    examples = []
    for stem, picture in pictures.items():
        names = page_names(stem, len(picture))
        for name, image, mask in zip(names, picture, masks[stem], strict=True):
            truth = _labels_and_cells(mask, mask_rule, background, ignored)
            examples.append(Example(name, _without_single_channel(image), *truth))
    return examples


def _labels_and_cells(
    mask: np.ndarray, mask_rule: str, background: int, ignored: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What a mask that keeps its rule means, int32 [H, W] each."""
    is_ignored = np.isin(mask, ignored)
    cells = np.where(is_ignored, 0, mask - np.int32(background))
    labels = cells if mask_rule == "classes" else (cells > 0).astype(np.int32)
    labels = np.where(is_ignored, np.int32(IGNORED), labels)
    if mask_rule == "instances":
        return labels, cells
    if annotated_share([labels]) < SPARSE:
        return labels, np.zeros_like(labels)
    return labels, connected_cells(labels)


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
    problems = Problems()
    is_file = path.is_file() or is_zarr(path)
    files = {example_stem(path): path} if is_file else find_files(path, problems)
    pictures = _read_pictures(files, path, channels, problems)
    problems.raise_all()
    named: list[tuple[str, np.ndarray]] = []
    for stem, picture in pictures.items():
        planes = map(_without_single_channel, picture)
        named.extend(zip(page_names(stem, len(picture)), planes, strict=True))
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


def _without_single_channel(image: np.ndarray) -> np.ndarray:
    return image[..., 0] if image.shape[-1] == 1 else image
