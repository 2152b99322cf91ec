"""Which pages of a TIFF file are full-size images, and whether each is complete."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import imagecodecs
import numpy as np
import tifffile

from unet_jax.errors import InputError
from unet_jax.files.decoding import check_declared, notice, refusal

_ORIENTATION = 274
_MAX_LEADING = 1000  # thumbnails before the first page of full size
# A smaller page that agrees so well with the first one shows the same.
_MIN_CORRELATION = 0.8

# JPEG and the other codecs take the image's size from the compressed data: 1 KB filled 12 GB.
_COMPRESSIONS = {
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.LZMA,
    tifffile.COMPRESSION.ZSTD,
}

#: Whether the installed imagecodecs must not be given damaged LZW data, see `lzw`.
LZW_IS_UNSAFE = tuple(map(int, imagecodecs.__version__.split(".")[:3])) < (2026, 10, 10)


def full_pages(path: Path, tif: tifffile.TiffFile) -> list[int]:
    """Indices of the full-size pages, without the levels of pyramids and thumbnails.

    All pages are checked: each full-size page is complete and like the first one, and no page is
    lost after the last one.

    Raises:
      InputError: otherwise.
    """
    first = _first_full_page(path, tif)
    full, offsets = [], set()
    for index, page in enumerate(all_pages(tif)):
        if page.offset in offsets:
            raise refusal(path, f"page {index} leads back to an earlier page")
        offsets.add(page.offset)
        if _is_full(path, page, first):
            full.append(index)
    _check_end(path, tif)
    if len(full) < len(offsets) or first.subifds:
        notice(path.parent, "smaller copies of an image (pyramids, thumbnails) are skipped")
    return full


def all_pages(tif: tifffile.TiffFile) -> Sequence[tifffile.TiffPage]:
    """The pages; tifffile's types say that they may be frames, which know less."""
    return cast("Sequence[tifffile.TiffPage]", tif.pages)  # they are not, unless asked for


def orientation(page: tifffile.TiffPage) -> int:
    """How a page is turned: 1..8 as TIFF 6.0 defines it, 1 = not at all."""
    value = page.tags.valueof(_ORIENTATION, default=1)
    return value if value in range(1, 9) else 1


def _first_full_page(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPage:
    if not tif.pages:
        raise refusal(path, "holds no page, expected an image")
    leading = itertools.islice(all_pages(tif), _MAX_LEADING)
    first = next((page for page in leading if not page.is_reduced), tif.pages.first)
    _check_kind(path, first)
    if first.is_reduced and first.subifds:
        raise refusal(path, "its pages are only previews, expected the image; save it as TIFF")
    return first


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    if page.dtype is None or page.dtype.kind not in "buif":
        found = page.dtype or f"of {page.bitspersample} bits, sample format {page.sampleformat}"
        raise refusal(path, f"pixels are {found}, expected integer or floating point numbers")
    if page.compression not in _COMPRESSIONS:
        found = tifffile.COMPRESSION(page.compression).name
        raise refusal(path, f"is compressed by {found}, expected Deflate, LZW, ZSTD or none")


def _is_full(path: Path, page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Whether a page is like the first one, or else a smaller copy of it; refuses all others."""
    if not all(isinstance(side, int) for side in (*page.shape, *page.chunks)):
        # A tuple times a side is a tuple as long as that.
        raise refusal(path, f"page {page.index} has several widths or heights, expected one")
    if page.hash == first.hash:
        _check_complete(path, page)
        if orientation(page) != orientation(first):
            raise refusal(
                path,
                f"page {page.index} has Orientation {orientation(page)}, expected"
                f" {orientation(first)} like page {first.index}",
            )
        return True
    if not (page.is_reduced and _is_smaller(page, first)):
        if not _may_be_thumbnail(page, first):
            raise _differs(path, page, first)
        _check_complete(path, page)
        check_declared(path, first.nbytes + page.nbytes)
        check_lzw(path, (first, page))
        if not _shows_the_same(page, first):
            raise _differs(path, page, first)
    return False


def _check_complete(path: Path, page: tifffile.TiffPage) -> None:
    """Refuses a page whose pixels are not in the file, or not as declared."""
    if page.samplesperpixel > 1 and page.planarconfig not in (1, 2):
        # tifffile would read one channel and leave the others as the memory was.
        planar = f"planar configuration {page.planarconfig!r}"
        raise refusal(path, f"page {page.index} has {planar}, expected 1 or 2")
    if 0 in page.shape:
        raise refusal(path, f"page {page.index} has size 0, expected an image")
    if page.is_tiled and page.dtype:
        check_declared(path, math.prod(page.chunks) * page.dtype.itemsize)
    if not _is_complete(page, page.parent.filehandle.size):
        raise refusal(path, f"page {page.index} is truncated, expected {page.nbytes:,} bytes")


def _is_complete(page: tifffile.TiffPage, file_size: int) -> bool:
    """Whether the file holds all bytes of a page's strips or tiles."""
    if page.is_contiguous:
        return page.dataoffsets[0] + page.nbytes <= file_size
    segments = math.prod(page.chunked)
    return len(page.dataoffsets) == len(page.databytecounts) == segments and all(
        count > 0 and offset + count <= file_size
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )


def _is_smaller(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    height, width = first.imagelength, first.imagewidth
    is_same = (page.imagelength, page.imagewidth) == (height, width)
    return page.imagelength <= height and page.imagewidth <= width and not is_same


def _may_be_thumbnail(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Whether a page may be a smaller copy of the first one that is not flagged as such."""
    height, width = first.imagelength, first.imagewidth
    return (
        _is_smaller(page, first)
        and 2 * page.imagelength <= height + 1
        and abs(page.imagelength * width - page.imagewidth * height) <= max(height, width)
        and page.compression in _COMPRESSIONS
        and page.dtype is not None
        and page.dtype.kind in "buif"
    )


def _shows_the_same(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Whether the first page, shrunk to the size of a smaller one, looks like it."""
    small, large = [
        each.asarray().mean(each.axes.index("S")) if "S" in each.axes else each.asarray()
        for each in (page, first)
    ]
    shrunk = large
    for axis in (0, 1):
        edges = np.arange(small.shape[axis]) * large.shape[axis] // small.shape[axis]
        sums = np.add.reduceat(shrunk, edges, axis, dtype=np.float64)
        widths = np.diff(edges, append=large.shape[axis])
        shrunk = sums / (widths[:, None] if axis == 0 else widths)
    if not (np.ptp(shrunk) or np.ptp(small)):  # of a mask without a cell
        return bool(shrunk.flat[0] == small.flat[0])
    return bool(np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > _MIN_CORRELATION)


def _differs(path: Path, page: tifffile.TiffPage, first: tifffile.TiffPage) -> InputError:
    return refusal(
        path,
        f"page {page.index} is {_described(page)}, expected {_described(first)} like page"
        f" {first.index}",
    )


def _described(page: tifffile.TiffPage) -> str:
    kind = tifffile.PHOTOMETRIC(page.photometric).name
    compression = tifffile.COMPRESSION(page.compression).name
    return f"{page.shape} {page.dtype} ({kind}, compression {compression})"


def _check_end(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuses a file that points to a further page, which could not be read."""
    link = tif.tiff.offsetsize
    tif.filehandle.seek(cast(int, tif.pages.next_page_offset))  # known after the last page
    if tif.filehandle.read(link) != bytes(link):
        raise refusal(path, f"is truncated or damaged after page {len(tif.pages) - 1}")


def check_lzw(path: Path, pages: Iterable[tifffile.TiffPage | tifffile.TiffFrame]) -> None:
    """Refuses damaged LZW data that might crash the installed imagecodecs."""
    for page in pages:
        if not LZW_IS_UNSAFE or page.compression != tifffile.COMPRESSION.LZW:
            return
        from unet_jax.files.lzw import is_sound  # Numba is slow to load, and few files are LZW

        for offset, count in set(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file = page.parent.filehandle
            file.seek(offset)
            data: bytes | bytearray = file.read(count)
            if page.keyframe and page.keyframe.fillorder == tifffile.FILLORDER.LSB2MSB:
                data = imagecodecs.bitorder_decode(data)
            if not is_sound(np.frombuffer(data, np.uint8)):
                reason = f"page {page.index} cannot be decoded because its LZW data is damaged"
                raise refusal(path, reason)
