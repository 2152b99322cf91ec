"""The one place where TIFF and PNG files are decoded, and where a bad file is refused."""

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from unet_jax.errors import InputError, one_line
from unet_jax.files.planes import Planes, planes_of
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
_EXPECTED_OF_PALETTE = (
    "expected plain grey levels or RGB (in Fiji: Image > Lookup Tables > Grays if the colours stand"
    " for grey levels, else Image > Type > RGB Color)"
)
_AS_PAGES = "save them as pages (in Fiji: Image > Hyperstacks > Re-order Hyperstack)"
_ORIENTATION = 274
_ALPHA = [(tifffile.EXTRASAMPLE.ASSOCALPHA,), (tifffile.EXTRASAMPLE.UNASSALPHA,)]
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


def read_image(path: str | os.PathLike, *, mapped: bool = False) -> np.ndarray:
    """Reads every page of a TIFF file, or a PNG file, after checking what it declares.

    The axes C (of ImageJ and OME files) and S (samples of a pixel) are channels; all others are
    pages. A constant alpha channel is dropped, pages of reduced size are skipped, and a TIFF's
    Orientation is applied, each with a notice. Whether a file is TIFF or PNG is told by its
    content, not by its name. No other file is opened, whatever its metadata name.

    Args:
      path: the file.
      mapped: leaves the pixels of an uncompressed TIFF in the file, to be read where they are
        looked at; it may then be larger than the memory.

    Returns:
      number [pages, H, W, C], no axis empty, as stored: any integer or floating dtype, all finite
      and at most 1e30 in size.
      One-bit TIFF pixels come as uint8 0 and 1; grey PNG pixels of 1, 2 or 4 bits are scaled to
      0..255, as that format defines them. A palette that is a ramp of one hue is read as grey,
      with a notice: its indices are the pixels.

    Raises:
      InputError: the file is missing, damaged or incomplete, declares an implausible size, has
        pages that differ, NaN, infinite, huge or complex pixels, inverted grey levels
        (MinIsWhite), another palette, lossy compression, or an alpha channel that is not constant.
    """
    return _read(Path(path), mapped=mapped)


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """Reads a file as `read_image` does, but takes its pixels for numbers, not for colours.

    The index of a palette is the mask's value, whatever its colour, with a notice. So is the
    number that is stored in a grey PNG of 2 or 4 bits; one of 1 bit holds 0 and 255.

    Args:
      path: the file.

    Returns:
      number [pages, H, W, C].

    Raises:
      InputError: as by `read_image`, but for palettes.
    """
    return _read(Path(path), is_mask=True)


def _read(path: Path, *, mapped: bool = False, is_mask: bool = False) -> np.ndarray:
    try:
        with path.open("rb") as file:
            head = file.read(len(_PNG_SIGNATURE))
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror})") from error
    if head == _PNG_SIGNATURE:
        pixels, has_alpha = _decode_png(path, is_mask)
    elif head[:2] in (b"II", b"MM"):
        pixels, has_alpha = _decode_tiff(path, mapped, is_mask)
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
                "its alpha channel is not constant, expected an image without transparency; if its"
                f" {pixels.shape[-1]} channels are slices, {_AS_PAGES}",
            )
        _notice(path.parent, "a constant alpha channel is dropped")
        pixels = pixels[..., :-1]
    return pixels


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
def _notice(folder: Path, what: str) -> None:
    logger.warning("%s: %s", folder, what)


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


def _decode_png(path: Path, is_mask: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [1, H, W, C], and whether the last channel is alpha."""
    with _decoding(path):
        data = path.read_bytes()
        chunks = _read_chunks(path, data)
        width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
        channels = _PNG_CHANNELS.get(colour_type, 1)  # others are refused by libpng
        is_palette = colour_type == _PNG_PALETTE
        is_number = (is_palette and bits <= 8) or (is_mask and not colour_type and bits in (2, 4))
        if is_palette:
            colours = b"".join(content for kind, content in chunks if kind == b"PLTE")
            _check_palette(path, np.frombuffer(colours, np.uint8).reshape(-1, 3), is_mask)
        elif is_number:
            _notice(path.parent, "the numbers in PNG masks of 2 or 4 bits are taken as stored")
        if is_number:
            data = _as_grey(chunks)
        elif channels in (1, 3) and b"tRNS" in dict(chunks):  # a transparent colour becomes alpha
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
    if is_number:
        pixels //= 255 // (2**bits - 1)  # libpng scales grey to 0..255
    return pixels.reshape(1, height, width, channels), channels in (2, 4)


def _read_chunks(path: Path, data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each PNG chunk, after comparing their checksums.

    libpng lets some damage pass with a printed line.
    """
    position, kind, chunks = len(_PNG_SIGNATURE), b"", []
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", data, end)
            if checksum != zlib.crc32(data[position + 4 : end]):
                raise _refusal(path, f"is damaged, chunk {kind!r} does not match its checksum")
            chunks.append((kind, data[position + 8 : end]))
            position = end + 4
    except struct.error as error:
        raise _refusal(
            path, f"is truncated at {len(data):,} bytes, expected a PNG image's end"
        ) from error
    return chunks


def _as_grey(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG without its palette and transparency, whose grey levels are the numbers stored."""
    parts = [_PNG_SIGNATURE]
    for kind, content in chunks:
        if kind == b"IHDR":
            content = content[:9] + b"\0" + content[10:]  # the colour type
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            parts += [struct.pack(">I", len(content)), kind, content, checksum]
    return b"".join(parts)


def _check_palette(path: Path, colours: np.ndarray, is_mask: bool) -> None:
    """Refuses an image whose colours [n, RGB] are not a ramp from black to one of them."""
    if is_mask:
        _notice(path.parent, "masks with a palette: the index of a colour is the mask's value")
        return
    ramp = np.linspace(0, 1, len(colours))[:, None] * colours[-1:]
    if not colours.any() or (abs(colours - ramp) > 0.01 * colours.max()).any():
        raise _refusal(path, f"holds palette colours, {_EXPECTED_OF_PALETTE}")
    _notice(path.parent, "images coloured by a lookup table of one hue are read as grey")


def _decode_tiff(path: Path, mapped: bool, is_mask: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [pages, H, W, C], and whether the last channel is alpha."""
    with _decoding(path), open_tiff(path) as tif:
        pages = full_pages(path, tif)
        first = tif.pages[pages[0]]
        _check_colours(path, first, is_mask)
        series = page_series(path, tif, pages)
        # Contiguous pages were seen to be in the file as a whole.
        mapped = mapped and len(series) == 1 and series[0].dataoffset is not None
        if not mapped:
            _check_declared(path, sum(part.nbytes for part in series))
        _check_lzw(path, (tif.pages[index] for index in pages))
        parts = [_read_series(path, part, mapped) for part in series]
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        samples, channels = first.samplesperpixel, pixels.shape[-1]
        has_alpha = channels == samples and first.extrasamples[-1:] in _ALPHA
        if channels % samples:
            _notice(path.parent, f"the {samples} channels stored are slices, read as pages")
        elif channels - has_alpha > 3 or (
            samples > 1
            and not has_alpha
            and (first.planarconfig == 2 or first.photometric != tifffile.PHOTOMETRIC.RGB)
        ):
            _notice(
                path.parent,
                f"pixels have {channels - has_alpha} channels; if these are slices, {_AS_PAGES}",
            )
        if orientation(first) != 1:
            _notice(path.parent, "images are turned as their Orientation tag says")
            pixels = _turned(pixels, orientation(first))
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels, has_alpha


def open_tiff(path: Path) -> tifffile.TiffFile:
    """A TIFF file, without those parts of tifffile that open others that its metadata name."""
    return tifffile.TiffFile(path, is_ome=False, is_mmstack=False, is_ndtiff=False)


def orientation(page: tifffile.TiffPage) -> int:
    """How a page is turned: 1..8 as TIFF 6.0 defines it, 1 = not at all."""
    value = page.tags.valueof(_ORIENTATION, default=1)
    return value if value in range(1, 9) else 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of [pages, H, W, C] as it is to be seen."""
    if orientation > 4:
        pixels = pixels.swapaxes(1, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    return pixels


def full_pages(path: Path, tif: tifffile.TiffFile) -> list[int]:
    """Indices of the pages of full size, without the levels of pyramids and thumbnails.

    All pages are walked: each of these is complete and like the first one, and none is lost behind
    the last.
    """
    if not tif.pages:
        raise _refusal(path, "holds no page, expected an image")
    size = path.stat().st_size
    leading = itertools.islice(tif.pages, _MAX_LEADING)
    first = next((page for page in leading if not page.is_reduced), tif.pages[0])
    _check_kind(path, first)
    if first.is_reduced and first.subifds:
        raise _refusal(path, "its pages are previews only, expected the image; save it as TIFF")
    full, offsets = [], set()
    for index, page in enumerate(tif.pages):
        if page.offset in offsets:
            raise _refusal(path, f"page {index} leads back to an earlier page")
        offsets.add(page.offset)
        if not all(isinstance(side, int) for side in (*page.shape, *page.chunks)):
            # A tuple times a side is a tuple as long as that.
            raise _refusal(path, f"page {index} has several widths or heights, expected one")
        is_like_first = page.hash == first.hash
        if not is_like_first and _is_smaller(page, first) and page.is_reduced:
            continue
        if not is_like_first and not _may_be_thumbnail(page, first):
            raise _differs(path, page, first)
        if page.samplesperpixel > 1 and page.planarconfig not in (1, 2):
            # tifffile would read one channel and leave the others as the memory was.
            planar = f"planar configuration {page.planarconfig!r}"
            raise _refusal(path, f"page {index} has {planar}, expected 1 or 2")
        if 0 in page.shape:
            raise _refusal(path, f"page {index} has size 0, expected an image")
        if page.is_tiled:
            _check_declared(path, math.prod(page.chunks) * page.dtype.itemsize)
        if not _is_complete(page, size):
            raise _refusal(path, f"page {index} is truncated, expected {page.nbytes:,} bytes")
        if not is_like_first:
            _check_declared(path, first.nbytes + page.nbytes)
            _check_lzw(path, (first, page))
            if not _shows_the_same(page, first):
                raise _differs(path, page, first)
            continue
        if orientation(page) != orientation(first):
            raise _refusal(
                path,
                f"page {index} has Orientation {orientation(page)}, expected {orientation(first)}"
                f" like page {first.index}",
            )
        full.append(index)
    link = tif.tiff.offsetsize
    tif.filehandle.seek(tif.pages.next_page_offset)
    if tif.filehandle.read(link) != bytes(link):
        raise _refusal(path, f"is truncated or damaged after page {len(tif.pages) - 1}")
    if len(full) < len(offsets) or first.subifds:
        _notice(path.parent, "smaller copies of an image (pyramids, thumbnails) are skipped")
    return full


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
    """Whether the first page looks like a smaller one, if it is shrunk to that."""
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
    return np.corrcoef(shrunk.ravel(), small.ravel())[0, 1] > _MIN_CORRELATION


def page_series(
    path: Path, tif: tifffile.TiffFile, pages: list[int]
) -> list[tifffile.TiffPageSeries]:
    """How the pages of full size are arranged: as the file describes it, or as they come."""
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
        first = tif.pages[pages[0]]
        shape = json.loads(first.shaped_description)["shape"] if tif.is_shaped else ()
        if tif.is_imagej or (shape and math.prod(shape) != first.size * len(pages)):
            raise _otherwise(path, pages)
    elif not planes and len(pages) > 1:
        _notice(
            path.parent,
            "the OME metadata do not say which channel, slice and time the pages of a file are;"
            " they are read as slices, in the order of the file",
        )
    tif.pages.useframes = True
    tif.pages.set_keyframe(pages[0])
    first = tif.pages[pages[0]]
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
    return _refusal(path, f"holds {len(pages)} page(s), its description says otherwise{how}")


def _check_lzw(path: Path, pages: Iterable[tifffile.TiffPage | tifffile.TiffFrame]) -> None:
    """Refuses what imagecodecs 2026.3.6 would follow to memory never written, and may die of."""
    for page in pages:
        if page.compression != tifffile.COMPRESSION.LZW:
            return
        for offset, count in set(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file = page.parent.filehandle
            file.seek(offset)
            data = file.read(count)
            if page.keyframe.fillorder == tifffile.FILLORDER.LSB2MSB:
                data = imagecodecs.bitorder_decode(data)
            if not _compiled_lzw_check()(np.frombuffer(data, np.uint8)):
                raise _refusal(
                    path, f"page {page.index} cannot be decoded, its LZW data is damaged"
                )


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


def _differs(path: Path, page: tifffile.TiffPage, first: tifffile.TiffPage) -> InputError:
    return _refusal(
        path,
        f"page {page.index} is {_described(page)}, expected {_described(first)} like page"
        f" {first.index}",
    )


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


def _check_colours(path: Path, page: tifffile.TiffPage, is_mask: bool) -> None:
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        colours = np.zeros((3, 0)) if page.colormap is None else page.colormap
        _check_palette(path, np.asarray(colours).T, is_mask)
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
