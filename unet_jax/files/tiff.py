"""Decoding of TIFF files."""

import json
import math
from pathlib import Path

import numpy as np
import tifffile

from unet_jax.errors import InputError, one_line
from unet_jax.files.decoding import (
    AS_PAGES,
    check_declared,
    check_palette,
    decoding,
    notice,
    refusal,
)
from unet_jax.files.planes import Planes, planes_of
from unet_jax.files.tiff_pages import all_pages, check_lzw, full_pages, orientation

_EXPECTED_COLOURS = "expected plain grey levels or RGB (in Fiji: Image > Lookup Tables > Grays)"
_ALPHA: list[tuple[int, ...]] = [
    (tifffile.EXTRASAMPLE.ASSOCALPHA,),
    (tifffile.EXTRASAMPLE.UNASSALPHA,),
]


def decode_tiff(path: Path, mapped: bool, is_mask: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [pages, H, W, C], and whether the last channel is alpha."""
    with decoding(path), open_tiff(path) as tif:
        pages = full_pages(path, tif)
        first = all_pages(tif)[pages[0]]
        _check_colours(path, first, is_mask)
        series = page_series(path, tif, pages)
        # Contiguous pages were seen to be in the file as a whole.
        in_file = len(series) == 1 and series[0].dataoffset is not None
        mapped = mapped and in_file and _is_in_order(series[0])
        if not mapped:
            check_declared(path, sum(part.nbytes for part in series))
        check_lzw(path, (tif.pages[index] for index in pages))
        parts = [_read_series(path, part, mapped) for part in series]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        samples, channels = first.samplesperpixel, pixels.shape[-1]
        has_alpha = channels == samples and first.extrasamples[-1:] in _ALPHA
        if channels % samples:
            notice(path.parent, f"the {samples} channels stored are slices and are read as pages")
        elif channels - has_alpha > 3 or (
            samples > 1
            and not has_alpha
            and (first.planarconfig == 2 or first.photometric != tifffile.PHOTOMETRIC.RGB)
        ):
            notice(
                path.parent,
                f"pixels have {channels - has_alpha} channels; if these are slices, {AS_PAGES}",
            )
        if orientation(first) != 1:
            notice(path.parent, "images are rotated as their Orientation tag says")
            pixels = _turned(pixels, orientation(first))
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels, has_alpha


def open_tiff(path: Path) -> tifffile.TiffFile:
    """A TIFF file, without the parts of tifffile that open other files named in its metadata."""
    return tifffile.TiffFile(path, is_ome=False, is_mmstack=False, is_ndtiff=False)


def _check_colours(path: Path, page: tifffile.TiffPage, is_mask: bool) -> None:
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        colours = np.zeros((3, 0)) if page.colormap is None else page.colormap
        check_palette(path, np.asarray(colours).T, is_mask)
    # Not inverted but refused: ImageJ stores masks in this way without inverting them, so that
    # inverting would swap them silently. tifffile ("shaped") stores every boolean array so.
    boolean_array = page.dtype == bool and page.is_shaped
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not boolean_array:
        raise refusal(path, f"grey levels are inverted (MinIsWhite), {_EXPECTED_COLOURS}")


def page_series(
    path: Path, tif: tifffile.TiffFile, pages: list[int]
) -> list[tifffile.TiffPageSeries]:
    """How the full-size pages are arranged: as the file describes them, or as they come."""
    first = all_pages(tif)[pages[0]]
    try:
        planes = planes_of(tif, pages)
    except ValueError as error:
        raise _otherwise(path, pages, f" ({one_line(error)})") from error
    if planes is None:
        series = [
            part
            for part in tif.series
            if part.keyframe.index in pages and not part.keyframe.is_subifd
        ]
        if series and series[0].kind not in ("uniform", "generic"):
            found = [-1 if page is None else page.index for part in series for page in part]
            if sorted(found) != pages:
                raise _otherwise(path, pages)
            return series
        # Where the description cannot be true, or not every page has one, tifffile groups the
        # pages without it.
        described = first.shaped_description if tif.is_shaped else None
        shape = json.loads(described)["shape"] if described else ()
        if tif.is_imagej or (shape and math.prod(shape) != first.size * len(pages)):
            raise _otherwise(path, pages)
    elif not planes and len(pages) > 1:
        notice(
            path.parent,
            "the OME metadata do not say which channel, slice and time point the pages of a file"
            " are; they are read as slices, in the order of the file",
        )
    tif.pages.useframes = True
    tif.pages.set_keyframe(pages[0])
    return [
        tifffile.TiffPageSeries(
            [tif.pages[index] for index in part.pages],
            (*part.shape, *first.shape),
            first.dtype,
            part.axes + first.axes,
        )
        for part in planes or [Planes("I", (len(pages),), pages, {})]
    ]


def _otherwise(path: Path, pages: list[int], how: str = "") -> InputError:
    return refusal(path, f"holds {len(pages)} page(s), but its description says otherwise{how}")


def _page_axes(axes: str) -> list[int]:
    """The places of the axes that are pages; along Z they follow each other."""
    pages = [place for place, letter in enumerate(axes) if letter not in "YXCS"]
    return sorted(pages, key=lambda place: axes[place] == "Z")


def _is_in_order(series: tifffile.TiffPageSeries) -> bool:
    """Whether the pages can be numbered without moving any."""
    axes = "".join(axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1)
    return "".join(axes[place] for place in _page_axes(axes)) in axes


def _read_series(path: Path, series: tifffile.TiffPageSeries, mapped: bool) -> np.ndarray:
    """Decodes a series as [pages, H, W, C]."""
    axes = series.axes
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise refusal(path, f"has axes {axes}, expected one Y and one X")
    pixels = series.asarray(out="memmap" if mapped else None)
    declared, decoded = (
        [side for side in shape if side != 1] for shape in (series.shape, pixels.shape)
    )
    if declared != decoded or pixels.dtype.newbyteorder("=") != series.dtype:
        raise refusal(
            path,
            f"decodes to {pixels.shape} {pixels.dtype}, expected {series.shape} {series.dtype}"
            " as it declares",
        )
    pixels = pixels.reshape(series.shape)  # new versions leave axes of length 1 out
    channels = [axis for axis, letter in enumerate(axes) if letter in "CS"]
    order = [*_page_axes(axes), axes.index("Y"), axes.index("X"), *channels]
    height, width = series.shape[axes.index("Y")], series.shape[axes.index("X")]
    count = math.prod(series.shape[axis] for axis in channels)
    return pixels.transpose(order).reshape(-1, height, width, count)


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [pages, H, W, C] in its correct orientation."""
    if orientation > 4:
        pixels = pixels.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return pixels
