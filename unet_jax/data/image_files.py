"""The one place where TIFF and PNG files are decoded, and where a bad file is refused."""

import contextlib
import functools
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from unet_jax.errors import InputError, one_line
from unet_jax.normalisation import MAX_GREY_VALUE, are_grey_values, grey_value_statistics

logger = logging.getLogger("unet_jax")

#: What one file may declare, in bytes of decoded pixels.
MAX_BYTES = 8 * 2**30
# LZW reaches about 1,400 : 1, times eight where a bit becomes a byte. A file that declares more,
# and is not small either way, was made to fill the memory.
_MAX_RATIO = 12_000
_ALWAYS_ALLOWED_BYTES = 64 * 2**20

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PALETTE = 3
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of each colour type
_EXPECTED_COLOURS = "expected plain grey levels or RGB (in Fiji: Image > Lookup Tables > Grays)"

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


def read_image(path: str | os.PathLike, *, mapped: bool = False) -> np.ndarray:
    """Reads every page of a TIFF file, or a PNG file, after checking what it declares.

    The axes C (of ImageJ and OME files) and S (samples of a pixel) are channels; all others are
    pages. A constant alpha channel is dropped with a notice. Whether a file is TIFF or PNG is told
    by its content, not by its name.

    Args:
      path: the file.
      mapped: leaves the pixels of an uncompressed TIFF in the file, to be read where they are
        looked at; it may then be larger than the memory.

    Returns:
      number [pages, H, W, C], no axis empty, as stored: any integer or floating dtype, all finite
      and at most 1e30 in size.
      One-bit TIFF pixels come as uint8 0 and 1; PNG pixels of 1, 2 or 4 bits are scaled to 0..255,
      as that format defines them.

    Raises:
      InputError: the file is missing, damaged or incomplete, declares an implausible size, has
        pages that differ, NaN, infinite, huge or complex pixels, inverted grey levels
        (MinIsWhite), a palette, lossy compression, or an alpha channel that is not constant.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG_SIGNATURE))
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    if head == _PNG_SIGNATURE:
        pixels, has_alpha = _decode_png(path)
    elif head[:2] in (b"II", b"MM"):
        pixels, has_alpha = _decode_tiff(path, mapped)
    else:
        found = f"begins with {head[:4]!r}" if head else "is empty"
        raise _refusal(path, f"{found}, expected a TIFF or PNG image")

    if pixels.dtype.kind == "f":
        for page, image in enumerate(pixels):
            if not are_grey_values(image):
                raise _refusal(
                    path,
                    f"page {page} holds NaN, infinite or huge pixels, expected numbers up to "
                    f"{MAX_GREY_VALUE:g}",
                )
    if has_alpha:
        if (pixels[..., -1] != pixels.flat[-1]).any():
            raise _refusal(
                path,
                "its alpha channel is not constant, expected an image without transparency",
            )
        _notice_alpha(path.parent)
        pixels = pixels[..., :-1]
    return pixels


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """As ``read_image``."""
    return read_image(path)


def check_grey_values(path: Path, pixels: np.ndarray) -> None:
    """Raises InputError if a page of a file, number [pages, H, W, C], cannot be normalised."""
    for page, image in enumerate(pixels):
        try:
            grey_value_statistics(image)
        except ValueError as error:
            raise _refusal(path, f"page {page} {error}") from error


def grey_as_one_channel(images: Sequence[np.ndarray], source: str) -> list[np.ndarray]:
    """Reads RGB as one channel, with a notice, where R = G = B in every RGB image of a set.

    One coloured image keeps the three channels of all: the images of a set belong together.

    Args:
      images: number [pages, H, W, C] each.
      source: where they come from, for the notice.

    Returns:
      The images, [pages, H, W, 1] if they were grey.
    """
    rgb = [image for image in images if image.shape[-1] == 3]
    if not rgb or any((image != image[..., :1]).any() for image in rgb):
        return list(images)
    logger.warning("%s: R, G and B are equal, read as one channel", source)
    return [image[..., :1] if image.shape[-1] == 3 else image for image in images]


def _refusal(path: Path, reason: str) -> InputError:
    # A damaged file's own words are quoted in some reasons.
    printable = "".join(letter if letter.isprintable() else "?" for letter in reason)
    return InputError(" ".join(f"{path}: {printable}".splitlines()))


@functools.cache  # once for each folder, not for each of its files
def _notice_alpha(folder: Path) -> None:
    logger.warning("%s: a constant alpha channel is dropped", folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the decoders' warnings and log."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logs = logging.getLogger("tifffile"), logging.getLogger("imagecodecs")
    for log in logs:
        log.addFilter(drop)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for log in logs:
            log.removeFilter(drop)


@contextlib.contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into an InputError."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise some twenty kinds
        raise _refusal(path, f"cannot be decoded, is damaged ({one_line(error)})") from error


def _check_declared(path: Path, declared: int) -> None:
    """Refuses a file that declares more decoded bytes than it can plausibly hold."""
    size = path.stat().st_size
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * size))
    if declared > limit:
        raise _refusal(
            path,
            f"declares {declared:,} bytes of pixels, expected at most {limit:,} of a file of"
            f" {size:,} bytes",
        )


def _decode_png(path: Path) -> tuple[np.ndarray, bool]:
    """Returns the pixels [1, H, W, C], and whether the last channel is alpha."""
    with _decoding(path):
        data = path.read_bytes()
        kinds = _check_chunks(path, data)
        width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
        if colour_type == _PNG_PALETTE:
            raise _refusal(path, f"holds palette colours, {_EXPECTED_COLOURS}")
        channels = _PNG_CHANNELS.get(colour_type, 1)  # others are refused by libpng
        if b"tRNS" in kinds and channels in (1, 3):  # a transparent colour becomes alpha
            channels += 1
        shape = (height, width) if channels == 1 else (height, width, channels)
        dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
        _check_declared(path, math.prod(shape) * dtype.itemsize)
        pixels = np.empty(shape, dtype)
        try:
            imagecodecs.png_decode(data, out=pixels)
        except Exception as error:
            # After an error of libpng imagecodecs 2026.3.6 never lets go of the array. An array of
            # its own would be lost too, and a count of None that Python 3.11 one day misses.
            pixels.resize(0, refcheck=False)
            # Where a chunk is wrong, the text is gone and its bytes are arbitrary.
            is_text = str(error).isprintable() and not isinstance(error, UnicodeError)
            reason = one_line(error) if is_text else "a chunk is out of place or of a wrong size"
            raise _refusal(path, f"cannot be decoded, is damaged ({reason})") from error
    return pixels.reshape(1, height, width, channels), channels in (2, 4)


def _check_chunks(path: Path, data: bytes) -> set[bytes]:
    """Compares the checksum of each PNG chunk; libpng lets some damage pass with a printed line.

    Returns the kinds of chunk that there are.
    """
    position, kind, kinds = len(_PNG_SIGNATURE), b"", set()
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", data, end)
            if checksum != zlib.crc32(data[position + 4 : end]):
                raise _refusal(path, f"is damaged, chunk {kind!r} does not match its checksum")
            position = end + 4
            kinds.add(kind)
    except struct.error as error:
        raise _refusal(
            path, f"is truncated at {len(data):,} bytes, expected a PNG image's end"
        ) from error
    return kinds


def _decode_tiff(path: Path, mapped: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [pages, H, W, C], and whether the last channel is alpha."""
    with _decoding(path), tifffile.TiffFile(path) as tif:
        if not tif.pages:
            raise _refusal(path, "holds no page, expected an image")
        first = tif.pages[0]
        _check_kind(path, first)
        _check_pages(path, tif)
        _check_description(path, tif)
        # Contiguous pages were seen to be in the file as a whole.
        mapped = mapped and len(tif.series) == 1 and tif.series[0].dataoffset is not None
        if not mapped:
            _check_declared(path, sum(series.nbytes for series in tif.series))
        if first.compression == tifffile.COMPRESSION.LZW:
            _check_lzw(path, tif)
        series = [_read_series(path, part, mapped) for part in tif.series]
        pixels = series[0] if len(series) == 1 else np.concatenate(series)
        has_alpha = bool(first.extrasamples) and first.extrasamples[-1] in (
            tifffile.EXTRASAMPLE.ASSOCALPHA,
            tifffile.EXTRASAMPLE.UNASSALPHA,
        )
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels, has_alpha


def _check_pages(path: Path, tif: tifffile.TiffFile) -> None:
    """Walks all pages: each is complete and like the first, and none is lost behind the last."""
    size = path.stat().st_size
    first = tif.pages[0]
    offsets = set()
    for index, page in enumerate(tif.pages):
        if page.offset in offsets:
            raise _refusal(path, f"page {index} leads back to an earlier page")
        offsets.add(page.offset)
        if not all(isinstance(side, int) for side in (*page.shape, *page.chunks)):
            # A tuple times a side is a tuple as long as that.
            raise _refusal(path, f"page {index} has several widths or heights, expected one")
        if page.hash != first.hash:
            found, expected = _described(page), _described(first)
            raise _refusal(path, f"page {index} is {found}, expected {expected} like page 0")
        if page.samplesperpixel > 1 and page.planarconfig not in (1, 2):
            # tifffile would read one channel and leave the others as the memory was.
            found = f"planar configuration {page.planarconfig!r}"
            raise _refusal(path, f"page {index} has {found}, expected 1 or 2")
        if 0 in page.shape:
            raise _refusal(path, f"page {index} has size 0, expected an image")
        if page.is_tiled:
            _check_declared(path, math.prod(page.chunks) * page.dtype.itemsize)
        if not _is_complete(page, size):
            raise _refusal(path, f"page {index} is truncated, expected {page.nbytes:,} bytes")
    link = tif.tiff.offsetsize
    tif.filehandle.seek(tif.pages.next_page_offset)
    if tif.filehandle.read(link) != bytes(link):
        raise _refusal(path, f"is truncated or damaged after page {len(tif.pages) - 1}")


def _check_lzw(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuses what imagecodecs 2026.3.6 would follow to memory never written, and may die of."""
    is_reversed = tif.pages[0].fillorder == tifffile.FILLORDER.LSB2MSB
    for index, page in enumerate(tif.pages):
        for offset, count in set(zip(page.dataoffsets, page.databytecounts, strict=True)):
            tif.filehandle.seek(offset)
            data = tif.filehandle.read(count)
            if is_reversed:
                data = imagecodecs.bitorder_decode(data)
            if not _compiled_lzw_check()(np.frombuffer(data, np.uint8)):
                raise _refusal(path, f"page {index} cannot be decoded, its LZW data is damaged")


@functools.cache
def _compiled_lzw_check() -> Callable[[np.ndarray], bool]:
    from unet_jax.metrics.compiled import compiled  # Numba is slow to load, and few files are LZW

    return compiled(_lzw_is_sound)


def _lzw_is_sound(data: np.ndarray) -> bool:
    """Whether a pixel, not a sequence of some, follows each code that clears the table.

    The codes and their widths are those of the TIFF 6.0 specification, section 13, or of files
    older than it, whose first byte is 0.

    Args:
      data: uint8 [bytes], not empty.
    """
    is_old = data[0] == 0
    position, width, entries, is_cleared = 0, 9, 258, False
    while position + width <= 8 * data.size:
        byte, bit = position // 8, position % 8
        third = np.int64(data[byte + 2]) if byte + 2 < data.size else 0
        if is_old:
            code = (data[byte] | np.int64(data[byte + 1]) << 8 | third << 16) >> bit
        else:
            code = np.int64(data[byte]) << 16 | np.int64(data[byte + 1]) << 8 | third
            code >>= 24 - bit - width
        code &= (1 << width) - 1
        position += width
        if code == 256:
            width, entries, is_cleared = 9, 258, True
        elif code == 257:
            return True
        elif is_cleared:
            if code > 257:
                return False
            is_cleared = False
        else:
            entries += 1
            if width < 12 and entries >= (1 << width) - (not is_old):
                width += 1
    return True


def _check_description(path: Path, tif: tifffile.TiffFile) -> None:
    """Refuses a file with fewer or more pages than its writer's description of it says."""
    # Where the description cannot be true, tifffile groups the pages without it.
    is_described = tif.is_imagej or tif.is_shaped or tif.is_ome
    is_ignored = is_described and tif.series[0].kind in ("uniform", "generic")
    pages = [page for series in tif.series for page in series]
    if is_ignored or len(pages) != len(tif.pages) or None in pages:
        raise _refusal(path, f"holds {len(tif.pages)} page(s), its description says otherwise")


def _described(page: tifffile.TiffPage) -> str:
    kind = tifffile.PHOTOMETRIC(page.photometric).name
    compression = tifffile.COMPRESSION(page.compression).name
    return f"{page.shape} {page.dtype} ({kind}, compression {compression})"


def _is_complete(page: tifffile.TiffPage, file_size: int) -> bool:
    """Whether the file holds all bytes of a page's strips or tiles."""
    if page.is_contiguous:
        return page.dataoffsets[0] + page.nbytes <= file_size
    segments = math.prod(page.chunked)
    return len(page.dataoffsets) == len(page.databytecounts) == segments and all(
        count > 0 and offset + count <= file_size
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )


def _check_kind(path: Path, page: tifffile.TiffPage) -> None:
    if page.dtype is None or page.dtype.kind not in "buif":
        found = page.dtype or f"of {page.bitspersample} bits, sample format {page.sampleformat}"
        raise _refusal(path, f"pixels are {found}, expected integer or floating point numbers")
    if page.compression not in _COMPRESSIONS:
        found = tifffile.COMPRESSION(page.compression).name
        raise _refusal(path, f"is compressed by {found}, expected Deflate, LZW, ZSTD or none")
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise _refusal(path, f"holds palette colours, {_EXPECTED_COLOURS}")
    # Not inverted but refused: ImageJ stores masks in this way without inverting them, so that
    # inverting would swap them silently. tifffile ("shaped") stores every boolean array so.
    boolean_array = page.dtype == bool and page.is_shaped
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not boolean_array:
        raise _refusal(path, f"grey levels are inverted (MinIsWhite), {_EXPECTED_COLOURS}")


def _read_series(path: Path, series: tifffile.TiffPageSeries, mapped: bool) -> np.ndarray:
    """Decodes a series as [pages, H, W, C]."""
    axes = series.axes
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise _refusal(path, f"has axes {axes}, expected one Y and one X")
    pixels = series.asarray(out="memmap" if mapped else None)
    if pixels.shape != series.shape or pixels.dtype.newbyteorder("=") != series.dtype:
        raise _refusal(
            path,
            f"decodes to {pixels.shape} {pixels.dtype}, expected the {series.shape} {series.dtype}"
            " it declares",
        )
    channels = [axis for axis, letter in enumerate(axes) if letter in "CS"]
    pages = [axis for axis, letter in enumerate(axes) if letter not in "YXCS"]
    order = [*pages, axes.index("Y"), axes.index("X"), *channels]
    height, width = series.shape[axes.index("Y")], series.shape[axes.index("X")]
    count = math.prod(series.shape[axis] for axis in channels)
    return pixels.transpose(order).reshape(-1, height, width, count)
