"""The one place where image files are read, and where a bad one is refused."""

import logging
import os
from pathlib import Path

import numpy as np

from unet_jax.files.decoding import AS_PAGES, notice, refusal
from unet_jax.files.names import is_zarr
from unet_jax.files.png import SIGNATURE, decode_png
from unet_jax.files.tiff import decode_tiff
from unet_jax.files.zarr_image import decode_zarr
from unet_jax.grey_values import MAX_GREY_VALUE, are_grey_values, grey_value_statistics

logger = logging.getLogger("unet_jax")


def read_image(path: str | os.PathLike, *, mapped: bool = False) -> np.ndarray:
    """Reads every page of a TIFF, PNG or OME-Zarr, after checking what it declares.

    The axes C (in ImageJ and OME files) and S (samples of a pixel) are channels; all others are
    pages, in the order of T, then Z, however they are stored. A constant alpha channel is dropped,
    pages of reduced size are skipped, and a TIFF's Orientation is applied, each with a warning. A
    file's content, not its name, decides whether it is TIFF or PNG. No other file is opened,
    whatever its metadata name. From an OME-Zarr of version 0.4 or 0.5, the first image is read in
    full resolution.

    Args:
      path: the file, or the directory of an OME-Zarr.
      mapped: leaves the pixels of an uncompressed TIFF in the file, to be read when they are
        accessed; it may then be larger than the memory.

    Returns:
      number [pages, H, W, C], no axis empty, as stored: any integer or floating dtype, all finite
      and at most 1e30 in size.
      One-bit TIFF pixels become uint8 0 and 1; grey PNG pixels of 1, 2 or 4 bits are scaled to
      0..255, as that format defines. A palette that is a ramp of one hue is read as grey, with a
      warning: its indices are the pixels.

    Raises:
      InputError: the file is missing, damaged or incomplete, declares an implausible size, has
        pages that differ, NaN, infinite, huge or complex pixels, inverted grey levels
        (MinIsWhite), another palette, lossy compression, or an alpha channel that is not constant.
    """
    return _read(Path(path), mapped=mapped)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads a file as `read_image` does, but takes its pixels as numbers, not as colours.

    The index into a palette is the mask's value, whatever its colour, with a warning. So is the
    number stored in a grey PNG of 2 or 4 bits; one of 1 bit holds 0 and 255.

    Args:
      path: the file.

    Returns:
      number [pages, H, W, C].

    Raises:
      InputError: as for `read_image`, except for palettes.
    """
    return _read(Path(path), is_mask=True)


def _decode(path: Path, mapped: bool, is_mask: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [pages, H, W, C], and whether the last channel is alpha."""
    if is_zarr(path):
        return decode_zarr(path, is_mask), False
    try:
        with path.open("rb") as file:
            head = file.read(len(SIGNATURE))
    except OSError as error:
        raise refusal(path, f"cannot be read ({error.strerror})") from error
    if head == SIGNATURE:
        return decode_png(path, is_mask)
    if head[:2] in (b"II", b"MM"):
        return decode_tiff(path, mapped, is_mask)
    found = f"begins with {head[:4]!r}" if head else "is empty"
    raise refusal(path, f"{found}, expected a TIFF or PNG image")


def _read(path: Path, *, mapped: bool = False, is_mask: bool = False) -> np.ndarray:
    pixels, has_alpha = _decode(path, mapped, is_mask)
    if pixels.dtype.kind == "f":
        for page, image in enumerate(pixels):
            if not are_grey_values(image):
                raise refusal(
                    path,
                    f"page {page} holds NaN, infinite or huge pixels, expected numbers up to "
                    f"{MAX_GREY_VALUE:g}",
                )
    if has_alpha:
        if (pixels[..., -1] != pixels.flat[-1]).any():
            raise refusal(
                path,
                "its alpha channel is not constant, expected an image without transparency; if its"
                f" {pixels.shape[-1]} channels are slices, {AS_PAGES}",
            )
        notice(path.parent, "a constant alpha channel is dropped")
        pixels = pixels[..., :-1]
    return pixels


def check_grey_values(path: Path, pixels: np.ndarray) -> None:
    """Raises InputError if a page of a file, number [pages, H, W, C], cannot be normalised."""
    for page, image in enumerate(pixels):
        try:
            grey_value_statistics(image)
        except ValueError as error:
            raise refusal(path, f"page {page} {error}") from error


def is_grey(pages: np.ndarray) -> bool:
    """Whether R = G = B everywhere in pages [pages, H, W, C] that are stored as RGB."""
    # Row by row, because they may be larger than the memory.
    return pages.shape[-1] == 3 and all((row == row[:, :1]).all() for page in pages for row in page)
