import io
import logging
import random
import struct
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from unet_jax.data.pixels import read_pictures
from unet_jax.errors import InputError, Problems, one_line
from unet_jax.files.images import read_image, read_mask

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
    if mode:
        image = image.convert(mode)
        image.putpalette(bytes(i * 7 % 256 for i in range(768)))  # colours in no order
    image.save(file, "PNG")
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
    for channels in (rgba, rgba[..., 2:]):
        assert refusal(path, png_bytes(channels)) == (
            f"{path}: its alpha channel is not constant, expected an image without transparency; if"
            f" its {channels.shape[-1]} channels are slices, save them as pages (in Fiji: Image >"
            " Hyperstacks > Re-order Hyperstack)"
        )
    channels = np.moveaxis(rgba, -1, 0)
    path.write_bytes(tiff_bytes(channels, ome=True, metadata={"axes": "CYX"}))
    np.testing.assert_array_equal(read_image(path), rgba[None], strict=True)


def notices(caplog, folder):
    """The notices so far, which name the folder."""
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    assert all(notice.startswith(f"{folder}: ") for notice in found)
    return [notice.removeprefix(f"{folder}: ") for notice in found]


CORNER = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
TURNED = {  # row 0 and column 0 of what is stored are the visual top, left, ... by TIFF 6.0
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("value", [*range(10), 65535])
def test_orientation_is_applied(path, caplog, value, compression):
    """To pages and channels, in memory and in the file, as Pillow does."""
    options = {"extratags": [(274, "H", 1, value, False)], "compression": compression}
    expected = np.array(TURNED.get(value, TURNED[1]), np.uint8)
    pixels = np.stack([CORNER, 10 * CORNER])
    path.write_bytes(tiff_bytes(pixels, photometric="minisblack", metadata=None, **options))
    expected = np.stack([expected, 10 * expected])[..., None]
    for found in (read_image(path), read_image(path, mapped=True), read_mask(path)):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert isinstance(read_image(path, mapped=True), np.memmap) == (compression is None)
    turned = (
        [] if value not in range(2, 9) else ["images are rotated as their Orientation tag says"]
    )
    assert notices(caplog, path.parent) == turned
    image = Image.fromarray(CORNER)
    image.getexif()[274] = value
    np.testing.assert_array_equal(ImageOps.exif_transpose(image), expected[0, ..., 0])

    rgb = np.stack([CORNER, CORNER + 1, CORNER + 2], -1)
    for planar, stored in (("contig", rgb), ("separate", np.moveaxis(rgb, -1, 0))):
        path.write_bytes(tiff_bytes(stored, photometric="rgb", planarconfig=planar, **options))
        np.testing.assert_array_equal(read_image(path)[..., :1], expected[:1], strict=True)
        np.testing.assert_array_equal(read_image(path)[..., 2:], expected[:1] + 2, strict=True)


def test_pages_that_are_turned_differently_are_refused(path):
    with tifffile.TiffWriter(path) as writer:
        for value in (1, 1, 6):
            writer.write(CORNER, metadata=None, extratags=[(274, "H", 1, value, True)])
    text = refusal(path, path.read_bytes())
    assert "page 2 has Orientation 6, expected 1 like page 0" in text


def ramp(red, green, blue):
    """uint8 [256, 3], black to one colour."""
    return (np.arange(256)[:, None] / 255 * [red, green, blue]).round().astype(np.uint8)


def palette_png(indices, colours, bits, transparency=None):
    """A PNG of indices [H, W] into colours [n, 3]."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    height, width = indices.shape
    binary = np.unpackbits(indices[..., None], axis=-1)[..., 8 - bits :]
    lines = np.packbits(binary.reshape(height, -1), axis=1)
    lines = np.pad(lines, ((0, 0), (1, 0))).tobytes()
    parts = [
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0)),
        chunk(b"PLTE", np.asarray(colours, np.uint8).tobytes()),
        chunk(b"tRNS", transparency) if transparency else b"",
        chunk(b"IDAT", zlib.compress(lines)),
        chunk(b"IEND", b""),
    ]
    return b"".join(parts)


def palette_tiff(indices, colours, bits=8):
    """A TIFF of indices [H, W] into uint8 colours [256, 3], the last of them repeated in 16 bit."""
    colormap = np.pad(colours, ((0, 2**bits - 256), (0, 0)), "edge").T.astype(np.uint16) * 257
    dtype = np.uint16 if bits == 16 else np.uint8
    return tiff_bytes(
        indices.astype(dtype), photometric="palette", colormap=colormap, metadata=None
    )


RANDOM_COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)
FIRE = np.sort(RANDOM_COLOURS, axis=0)  # ever brighter, but not of one hue
PALETTE_MASK = "masks have a palette; the index of a colour is read as the mask's value"


@pytest.mark.parametrize("transparency", [None, b"\0", bytes(range(2))])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_index_of_a_palette_png_is_the_value_of_a_mask(path, caplog, bits, transparency):
    indices = np.random.default_rng(bits).integers(0, 2**bits, (5, 7), np.uint8)
    path.write_bytes(palette_png(indices, RANDOM_COLOURS[: 2**bits], bits, transparency))
    np.testing.assert_array_equal(read_mask(path), indices[None, ..., None], strict=True)
    path.with_name("other").write_bytes(path.read_bytes())
    read_mask(path.with_name("other"))
    assert notices(caplog, path.parent) == [PALETTE_MASK]
    with Image.open(path) as image:
        np.testing.assert_array_equal(image, indices)


@pytest.mark.parametrize("bits", [8, 16])
def test_index_of_a_palette_tiff_is_the_value_of_a_mask(path, caplog, bits):
    path.write_bytes(palette_tiff(STACK[0] * (bits == 8) + np.uint8(3), RANDOM_COLOURS, bits))
    expected = STACK[:1, ..., None] * (bits == 8) + np.uint8(3)
    np.testing.assert_array_equal(read_mask(path), expected.astype(f"u{bits // 8}"), strict=True)
    assert notices(caplog, path.parent) == [PALETTE_MASK]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_tiff_of_few_bits_is_a_mask_too(path, bits):
    indices = np.random.default_rng(bits).integers(0, 2**bits, (5, 16), np.uint8)
    binary = np.unpackbits(indices[..., None], axis=-1)[..., 8 - bits :]
    packed = palette_tiff(np.packbits(binary.reshape(5, -1), axis=1), RANDOM_COLOURS)
    path.write_bytes(with_tags(packed, {256: 16, 258: bits}))
    np.testing.assert_array_equal(read_mask(path), indices[None, ..., None], strict=True)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_png_masks_of_few_bits_hold_the_numbers_stored(path, caplog, bits):
    """But for one bit, which other files store as 0 and 255."""
    indices = np.random.default_rng(bits).integers(0, 2**bits, (5, 7), np.uint8)
    content = bytearray(palette_png(indices, [], bits))
    content[25] = 0  # grey
    struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    path.write_bytes(content)
    scale = 255 // (2**bits - 1)
    in_mask = 255 if bits == 1 else 1
    np.testing.assert_array_equal(read_mask(path)[0, ..., 0], indices * np.uint8(in_mask))
    np.testing.assert_array_equal(read_image(path)[0, ..., 0], indices * np.uint8(scale))
    expected = ["the numbers in PNG masks of 2 or 4 bits are read as stored"]
    assert notices(caplog, path.parent) == expected * (bits in (2, 4))


@pytest.mark.parametrize("write", ["png", "tiff", "tiff16"])
@pytest.mark.parametrize("hue", [(0, 255, 0), (255, 255, 255), (0, 255, 255), (90, 180, 40)])
def test_image_with_a_ramp_of_one_hue_is_grey(path, caplog, write, hue):
    if write == "png":
        content = palette_png(STACK[0], ramp(*hue), 8)
    elif write == "tiff":
        content = palette_tiff(STACK[0], ramp(*hue))
    else:
        colormap = (np.linspace(0, 1, 2**16)[:, None] * hue * 257).round().T.astype(np.uint16)
        pixels = STACK[0].astype(np.uint16) * 200
        content = tiff_bytes(pixels, photometric="palette", colormap=colormap)
    path.write_bytes(content)
    found = read_image(path)
    scale = 200 if write == "tiff16" else 1
    assert found.dtype == (np.uint16 if write == "tiff16" else np.uint8)
    np.testing.assert_array_equal(found, STACK[:1, ..., None].astype(found.dtype) * scale)
    expected = ["images coloured by a lookup table of one hue are read as grey"]
    assert notices(caplog, path.parent) == expected


@pytest.mark.parametrize("write", [palette_tiff, lambda *given: palette_png(*given, 8)])
@pytest.mark.parametrize(
    "colours",
    [ramp(0, 255, 0)[::-1], RANDOM_COLOURS, FIRE, np.zeros((256, 3), np.uint8), ramp(9, 9, 9) + 99],
)
def test_image_with_another_palette_is_refused(path, caplog, write, colours):
    text = refusal(path, write(STACK[0], colours))
    assert text == (
        f"{path}: holds palette colours, expected plain grey levels or RGB (in Fiji: Image >"
        " Lookup Tables > Grays if the colours stand for grey levels, otherwise Image > Type >"
        " RGB Color)"
    )
    assert not caplog.records


def test_grey_rgb_becomes_one_channel_only_if_all_of_a_set_are_grey(tmp_path, caplog):
    def read(*images):
        files = {f"{i}": tmp_path / f"{i}.tif" for i in range(len(images))}
        for file, image in zip(files.values(), images, strict=True):
            tifffile.imwrite(file, image, photometric="rgb" if image.shape[-1] == 3 else None)
        return [*read_pictures(files, "folder", None, Problems()).values()]

    grey, colour = np.repeat(STACK[0, ..., None], 3, axis=-1), RGB
    grey_read, single_read = read(grey, STACK[:2])
    assert grey_read.shape == (1, 20, 30, 1) and single_read.shape == (2, 20, 30, 1)
    np.testing.assert_array_equal(grey_read[0, ..., 0], STACK[0])
    assert [r.getMessage() for r in caplog.records] == [
        "folder: R, G and B are equal and are read as one channel"
    ]
    caplog.clear()
    assert [image.shape[-1] for image in read(grey, colour)] == [3, 3]
    assert [image.shape[-1] for image in read(STACK[:2])] == [1]
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
        (tiff_bytes(RGB, photometric="rgb", compression="jpeg"), "compressed by JPEG"),
        (png_bytes(STACK[0], "P"), "palette"),
        (tiff_bytes(STACK).replace(b"[5, 20, 30]", b"[9, 20, 30]"), "5 page(s)"),
        (imagej_stack_behind_one_header()[:-1], "1 page(s)"),
        (
            tiff_bytes(
                STACK, metadata=None, compression="zlib", description="ImageJ=1.54f\nslices=3\n"
            ),
            "decodes to (5, 20, 30) uint8, expected (3, 20, 30) uint8",
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


LARGE = np.random.default_rng(2).normal(100, 20, (3, 40, 60)).cumsum(1).cumsum(2)
LARGE = (LARGE / LARGE.max() * 200 + 20 * np.sin(np.arange(60) / 5)).astype(np.uint8)
SMALL = LARGE[:, ::2, ::2]
SKIPPED = ["smaller copies of an image (pyramids, thumbnails) are skipped"]


def pages_one_by_one(path, *pages):
    """Writes (pixels, options) as pages of a TIFF."""
    with tifffile.TiffWriter(path) as writer:
        for pixels, options in pages:
            writer.write(pixels, **{"metadata": None, "contiguous": False} | options)


@pytest.mark.parametrize("metadata", [None, {}])
@pytest.mark.parametrize(
    "copies",
    [
        [(SMALL[0], {"subfiletype": 1}), (SMALL[0, ::2, ::2], {"subfiletype": 1})],
        [(SMALL[0], {"subfiletype": 1, "compression": "jpeg"})],
        [(np.stack([SMALL[0]] * 3, -1), {"subfiletype": 1, "photometric": "rgb"})],
        # Not said to be reduced, but it shows the same.
        [(SMALL[0], {})],
        [(LARGE[0, ::3, ::3], {}), (LARGE[0, ::7, ::7], {"compression": "lzw"})],
        [(np.stack([SMALL[0]] * 3, -1), {"photometric": "rgb"})],
        [(SMALL[0].astype(np.float32) / 255, {})],
    ],
)
@pytest.mark.parametrize("metadata_of_copies", [None, {}])
def test_pyramids_and_thumbnails_are_skipped(path, caplog, copies, metadata, metadata_of_copies):
    copies = [(copy, {"metadata": metadata_of_copies} | options) for copy, options in copies]
    pages_one_by_one(path, (LARGE[0], {"metadata": metadata}), *copies)
    for mapped in (False, True):
        found = read_image(path, mapped=mapped)
        np.testing.assert_array_equal(found, LARGE[:1, ..., None], strict=True)
    assert notices(caplog, path.parent) == SKIPPED


def test_thumbnail_of_a_mask_without_a_cell_is_skipped(path, caplog):
    blank = np.zeros((40, 60), np.uint8)
    pages_one_by_one(path, (blank, {}), (blank[::2, ::2], {}))
    np.testing.assert_array_equal(read_image(path), blank[None, ..., None], strict=True)
    assert notices(caplog, path.parent) == SKIPPED


def test_thumbnails_before_and_between_pages_are_skipped(path, caplog):
    thumbnail = {"subfiletype": 1}
    pages = [(page, {}) for page in LARGE]
    small = [(page, thumbnail) for page in SMALL]
    pages_one_by_one(path, small[0], pages[0], pages[1], small[1], small[2], pages[2])
    np.testing.assert_array_equal(read_image(path), LARGE[..., None], strict=True)
    assert notices(caplog, path.parent) == SKIPPED
    # All of one size: the flag means nothing.
    pages_one_by_one(path, *[(page, thumbnail) for page in LARGE])
    np.testing.assert_array_equal(read_image(path), LARGE[..., None], strict=True)
    assert not caplog.records


@pytest.mark.parametrize("options", [{"metadata": None}, {}, {"ome": True}])
def test_pyramids_in_subifds_are_skipped(path, caplog, options):
    metadata = options.get("metadata", {"axes": "ZYX"})
    with tifffile.TiffWriter(path, ome=options.get("ome")) as writer:
        writer.write(LARGE, subifds=2, metadata=metadata, photometric="minisblack")
        for step in (2, 4):
            level = LARGE[:, ::step, ::step]
            writer.write(level, subfiletype=1, metadata=metadata, photometric="minisblack")
    np.testing.assert_array_equal(read_image(path), LARGE[..., None], strict=True)
    assert notices(caplog, path.parent) == SKIPPED


@pytest.mark.parametrize(
    "other",
    [
        (SMALL[0, ::-1], {}),  # another picture
        (np.full((20, 30), 7, np.uint8), {}),
        (SMALL[0, :10], {}),  # a part
        (LARGE[0, 1:], {}),
        (LARGE[0, 2:, 3:], {}),
        (SMALL[0], {"compression": "jpeg"}),
        (LARGE[0].astype(np.uint16), {"subfiletype": 1}),  # not smaller
        (np.zeros((80, 120), np.uint8), {"subfiletype": 1}),
    ],
)
def test_pages_that_are_no_smaller_copy_are_refused(path, caplog, other):
    pages_one_by_one(path, (LARGE[0], {}), (LARGE[1], {}), other)
    text = refusal(path, path.read_bytes())
    if other[0].dtype == np.uint8:
        assert f"page 2 is {other[0].shape} uint8 (MINISBLACK, compression" in text
        assert "expected (40, 60) uint8 (MINISBLACK, compression NONE) like page 0" in text
    else:
        assert "page 2 is (40, 60) uint16" in text
    assert not caplog.records


def test_preview_whose_image_is_elsewhere_is_refused(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(SMALL[0], subifds=1, subfiletype=1, metadata=None)
        writer.write(LARGE[0], metadata=None)
    assert "its pages are only previews" in refusal(path, path.read_bytes())


IF_SLICES = (
    "if these are slices, save them as pages (in Fiji: Image > Hyperstacks > Re-order Hyperstack)"
)


@pytest.mark.parametrize(
    ("pixels", "options", "shape", "notice"),
    [
        # Said to be slices by the axes, wherever they are stored.
        (STACK[:4], {"photometric": "rgb", "metadata": {"axes": "QYX"}}, (4, 20, 30, 1), "slices"),
        (STACK[:4], {"photometric": "rgb", "metadata": {"axes": "ZYX"}}, (4, 20, 30, 1), "slices"),
        (STACK[:3], {"photometric": "rgb", "metadata": {"axes": "TYX"}}, (3, 20, 30, 1), "slices"),
        # Not said to be anything.
        (STACK[:3], {"photometric": "rgb"}, (1, 20, 30, 3), "channels"),
        (STACK[:4], {"photometric": "rgb", "extrasamples": [0]}, (1, 20, 30, 4), "channels"),
        (
            STACK,
            {"photometric": "minisblack", "planarconfig": "separate", "metadata": None},
            (1, 20, 30, 5),
            "channels",
        ),
        (
            np.moveaxis(STACK, 0, -1),
            {"photometric": "minisblack", "planarconfig": "contig"},
            (1, 20, 30, 5),
            "channels",
        ),
        (
            np.moveaxis(STACK[:3], 0, -1),
            {"photometric": "minisblack", "planarconfig": "contig"},
            (1, 20, 30, 3),
            "channels",
        ),
        (STACK[:4], {"imagej": True, "metadata": {"axes": "CYX"}}, (1, 20, 30, 4), "channels"),
        (STACK, {"ome": True, "metadata": {"axes": "CYX"}}, (1, 20, 30, 5), "channels"),
        # Colours, channels and pages.
        (RGB, {"photometric": "rgb"}, (1, 20, 30, 3), None),
        (STACK[:3], {"imagej": True, "metadata": {"axes": "CYX"}}, (1, 20, 30, 3), None),
        (STACK, {"imagej": True, "metadata": {"axes": "ZYX"}}, (5, 20, 30, 1), None),
        (STACK, {"photometric": "minisblack", "metadata": {"axes": "QYX"}}, (5, 20, 30, 1), None),
    ],
)
def test_slices_stored_as_channels_are_named(path, caplog, pixels, options, shape, notice):
    path.write_bytes(tiff_bytes(pixels, **options))
    assert read_image(path).shape == shape
    expected = {
        "slices": [f"the {len(pixels)} channels stored are slices and are read as pages"],
        "channels": [f"pixels have {shape[-1]} channels; {IF_SLICES}"],
        None: [],
    }
    assert notices(caplog, path.parent) == expected[notice]


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
    caplog.set_level(logging.INFO, "numba")  # it says at length how it compiles
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
