import io
import logging
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_jax.data.image_files import grey_as_one_channel, one_line, read_image
from unet_jax.errors import InputError

STACK = np.random.default_rng(0).integers(0, 200, (5, 20, 30), np.uint8)
RGB = np.random.default_rng(1).integers(0, 255, (20, 30, 3), np.uint8)
OPAQUE = np.full((20, 30, 1), 255, np.uint8)


def tiff_bytes(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def png_bytes(pixels, mode=None):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def png_of_header(width, height, data):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def with_tags(tiff, values):
    """Overwrites tags of the first page of a little-endian TIFF by 32-bit values."""
    data = bytearray(tiff)
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in values:
            struct.pack_into("<HII", data, entry + 2, 4, 1, values.pop(tag))
    assert not values
    return bytes(data)


def refusal(path, content):
    """The text of the one-line error that reading the file gives."""
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and text.count(str(path)) == 1
    assert text.splitlines() == [text]
    return text


@pytest.fixture
def path(tmp_path):
    return tmp_path / "image.tif"


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("options", [{}, {"metadata": None}, {"tile": (16, 16)}])
def test_pages_of_a_tiff_are_read_as_written(path, compression, options):
    path.write_bytes(tiff_bytes(STACK, compression=compression, **options))
    np.testing.assert_array_equal(read_image(path), STACK[..., None], strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">u2", "uint32", "f2", "f4", "f8"])
def test_dtype_is_as_stored(path, dtype):
    path.write_bytes(tiff_bytes(STACK.astype(dtype)))
    expected = STACK.astype(np.dtype(dtype).newbyteorder("="))[..., None]
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb"},
        {"photometric": "minisblack", "planarconfig": "contig"},
    ],
)
def test_samples_are_channels(path, options):
    path.write_bytes(tiff_bytes(RGB, **options))
    np.testing.assert_array_equal(read_image(path), RGB[None], strict=True)


def test_separate_planes_are_channels(path):
    planes = np.ascontiguousarray(np.moveaxis(RGB, -1, 0))
    path.write_bytes(tiff_bytes(planes, photometric="rgb", planarconfig="separate"))
    np.testing.assert_array_equal(read_image(path), RGB[None], strict=True)


@pytest.mark.parametrize("writer", ["imagej", "ome"])
def test_axis_c_is_channels_and_others_are_pages(path, writer):
    pixels = np.arange(3 * 4 * 2 * 20 * 30, dtype=np.uint16).reshape(3, 4, 2, 20, 30)
    path.write_bytes(tiff_bytes(pixels, metadata={"axes": "TZCYX"}, **{writer: True}))
    expected = np.moveaxis(pixels, 2, -1).reshape(12, 20, 30, 2)
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


def test_pages_written_one_by_one_are_all_read(path):
    with tifffile.TiffWriter(path) as writer:
        for page in STACK:
            writer.write(page, contiguous=False)
    np.testing.assert_array_equal(read_image(path), STACK[..., None], strict=True)


def imagej_stack_behind_one_header():
    first = tiff_bytes(
        STACK[0], metadata=None, description="ImageJ=1.54f\nimages=5\nslices=5\n", software=""
    )
    return first + STACK[1:].tobytes()


def test_imagej_stack_behind_one_header(path):
    path.write_bytes(imagej_stack_behind_one_header())
    np.testing.assert_array_equal(read_image(path), STACK[..., None], strict=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png(path, dtype):
    path.write_bytes(png_bytes(STACK[0].astype(dtype)))
    np.testing.assert_array_equal(read_image(path), STACK[:1, ..., None].astype(dtype), strict=True)


def test_png_in_colour_and_of_one_bit(path):
    path.write_bytes(png_bytes(RGB))
    np.testing.assert_array_equal(read_image(path), RGB[None], strict=True)
    path.write_bytes(png_bytes(STACK[0] > 99))
    expected = (STACK[:1, ..., None] > 99).astype(np.uint8) * np.uint8(255)
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


def test_boolean_arrays_of_tifffile_keep_their_sense(path):
    path.write_bytes(tiff_bytes(STACK > 99))
    expected = (STACK > 99).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(read_image(path), expected, strict=True)


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
def test_constant_alpha_is_dropped_with_one_notice(tmp_path, caplog, alpha):
    rgba = np.concatenate([RGB, OPAQUE], axis=-1)
    (tmp_path / "a.tif").write_bytes(tiff_bytes(rgba, photometric="rgb", extrasamples=[alpha]))
    (tmp_path / "b.png").write_bytes(png_bytes(rgba))
    for name in ("a.tif", "b.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB[None], strict=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: a constant alpha channel is dropped"
    ]


def test_alpha_that_varies_is_refused_and_a_fourth_channel_is_not(path):
    rgba = np.concatenate([RGB, OPAQUE], axis=-1)
    rgba[3, 4, 3] = 0
    assert "alpha" in refusal(path, png_bytes(rgba))
    assert "alpha" in refusal(path, png_bytes(rgba[..., 2:]))
    channels = np.moveaxis(rgba, -1, 0)
    path.write_bytes(tiff_bytes(channels, ome=True, metadata={"axes": "CYX"}))
    np.testing.assert_array_equal(read_image(path), rgba[None], strict=True)


def test_grey_rgb_becomes_one_channel_only_if_all_of_a_set_are_grey(caplog):
    grey, colour = np.repeat(STACK[:1, ..., None], 3, axis=-1), RGB[None]
    single = STACK[:2, ..., None]
    read = grey_as_one_channel([grey, single], "folder")
    assert [image.shape for image in read] == [(1, 20, 30, 1), (2, 20, 30, 1)]
    np.testing.assert_array_equal(read[0][0, ..., 0], STACK[0])
    assert [r.getMessage() for r in caplog.records] == [
        "folder: R, G and B are equal, read as one channel"
    ]
    caplog.clear()
    assert [i.shape[-1] for i in grey_as_one_channel([grey, colour], "folder")] == [3, 3]
    assert [i.shape[-1] for i in grey_as_one_channel([single], "folder")] == [1]
    assert not caplog.records


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.tif", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_image(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<html>\n", "begins with b'<htm', expected a TIFF or PNG"),
        (b"II*\0\0\0\0\0", "holds no page"),
        (b"II*\0", "damaged"),
        (tiff_bytes(STACK[0])[:-1], "page 0 is truncated, expected 600 bytes"),
        (tiff_bytes(STACK, compression="zlib")[:300], "truncated"),
        (png_bytes(STACK[0])[:-20], "truncated"),
        (png_of_header(0, 5, b""), "damaged"),
        (tiff_bytes(STACK.astype(np.complex64)), "complex64"),
        (tiff_bytes(STACK, photometric="miniswhite"), "inverted (MinIsWhite)"),
        (tiff_bytes(STACK, photometric="palette", colormap=np.zeros((3, 256), "u2")), "palette"),
        (tiff_bytes(RGB, photometric="rgb", compression="jpeg"), "compressed by JPEG"),
        (png_bytes(STACK[0], "P"), "palette"),
        (tiff_bytes(STACK).replace(b"[5, 20, 30]", b"[9, 20, 30]"), "5 page(s)"),
        (imagej_stack_behind_one_header()[:-1], "1 page(s)"),
        (
            tiff_bytes(
                STACK, metadata=None, compression="zlib", description="ImageJ=1.54f\nslices=3\n"
            ),
            "decodes to (5, 20, 30) uint8, expected the (3, 20, 30) uint8",
        ),
        (
            tiff_bytes(STACK, ome=True, metadata={"axes": "ZYX"}).replace(
                b'PlaneCount="5"', b'PlaneCount="4"'
            ),
            "5 page(s)",
        ),
        (
            with_tags(tiff_bytes(STACK[0], compression="zlib", rowsperstrip=7), {278: 5}),
            "truncated",
        ),
        (with_tags(tiff_bytes(STACK[0]), {257: 0}), "page 0 has size 0"),
        (tiff_bytes(STACK, metadata={"axes": "ZCT"}), "axes ZCT"),
    ],
)
def test_unusable_files_are_refused(path, caplog, content, says):
    assert says in refusal(path, content)
    assert not caplog.records


def test_error_is_one_line_even_if_the_file_name_is_not(tmp_path):
    path = tmp_path / "two\nlines.tif"
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("other", [np.zeros((20, 31), np.uint8), np.zeros((20, 30), np.uint16)])
def test_pages_that_differ_are_refused(path, other):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(STACK[0])
        writer.write(other)
    assert f"page 1 is {other.shape} {other.dtype}" in refusal(path, file.getvalue())


def test_every_page_counts_for_nan(path):
    pixels = STACK.astype(np.float32)
    for bad in (np.nan, np.inf):
        pixels[3, 10, 10] = bad
        assert "page 3 holds NaN" in refusal(path, tiff_bytes(pixels))


def test_chain_of_pages_that_ends_nowhere_or_loops_is_refused(path):
    content = bytearray(tiff_bytes(STACK, metadata=None))
    path.write_bytes(content)
    with tifffile.TiffFile(path) as tif:
        second = tif.pages[1].offset
        (tags,) = struct.unpack_from("<H", content, second)
    link = second + 2 + 12 * tags
    struct.pack_into("<I", content, link, len(content))
    assert "truncated or damaged after page 1" in refusal(path, content)
    struct.pack_into("<I", content, link, second)
    assert "page 2 leads back" in refusal(path, content)


def test_strip_that_was_never_written_is_refused(path):
    content = bytearray(tiff_bytes(STACK[0], compression="zlib", rowsperstrip=7))
    path.write_bytes(content)
    with tifffile.TiffFile(path) as tif:
        byte_counts = tif.pages[0].tags["StripByteCounts"]
    assert byte_counts.count == 3
    struct.pack_into("<H", content, byte_counts.valueoffset + 2, 0)
    assert "page 0 is truncated" in refusal(path, content)


def test_warnings_of_the_decoder_do_not_leak(path, monkeypatch):
    decode = tifffile.TiffPageSeries.asarray

    def decode_and_warn(series, **options):
        warnings.warn("the next NumPy will not like this", DeprecationWarning, stacklevel=1)
        return decode(series, **options)

    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", decode_and_warn)
    path.write_bytes(tiff_bytes(STACK))
    np.testing.assert_array_equal(read_image(path), STACK[..., None])


def test_foreign_errors_become_one_short_line():
    assert one_line(ValueError("first\n  second\r\n")) == "first second"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 999))) == 300


def test_bombs_are_refused_before_they_are_decoded(path):
    zeros = np.zeros((64, 64), np.uint8)
    tags = {256: 100_000, 257: 100_000, 278: 100_000}
    compressed = tiff_bytes(zeros, compression="zlib", metadata=None)
    assert "declares 10,000,000,000 bytes" in refusal(path, with_tags(compressed, tags))
    tiled = tiff_bytes(zeros, compression="zlib", tile=(64, 64), metadata=None)
    tags = {322: 100_000, 323: 100_000}
    assert "declares 10,000,000,000 bytes" in refusal(path, with_tags(tiled, tags))
    assert "declares 3,600,000,000 bytes" in refusal(path, png_of_header(60_000, 60_000, b""))
    large = png_of_header(100_000, 100_000, random.Random(0).randbytes(800_000))
    assert "expected at most 8,589,934,592" in refusal(path, large)


def test_mutated_files_are_read_or_refused_in_one_line(path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    seeds = [
        tiff_bytes(STACK),
        tiff_bytes(STACK, metadata=None, compression="lzw", rowsperstrip=7),
        tiff_bytes(STACK, compression="zlib", predictor=True, tile=(16, 16)),
        tiff_bytes(STACK.astype(np.float32), imagej=True, metadata={"axes": "ZYX"}),
        tiff_bytes(STACK, ome=True, metadata={"axes": "ZYX"}),
        png_bytes(STACK[0]),
    ]
    chance = random.Random(0)
    read = 0
    for seed in seeds * 50:
        content = bytearray(seed)
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            content = content[: chance.randrange(len(content))]
        path.write_bytes(content)
        try:
            pixels = read_image(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        else:
            assert pixels.ndim == 4 and pixels.size and pixels.dtype.kind in "uif"
            read += 1
    assert 0 < read < 300
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
