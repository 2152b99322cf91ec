"""Mutated image files never hurt: each is still a valid image, or refused in one line.

They are read in a process of its own, `python -m tests.reliability.test_fuzz_images`, whose memory
is measured and of which everything printed is seen. UNET_JAX_FUZZ_SEED=1 draws other files.
"""

import collections
import contextlib
import faulthandler
import functools
import gc
import importlib
import io
import itertools
import json
import logging
import math
import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from tests.reliability.conftest import peak_bytes
from unet_jax.errors import InputError
from unet_jax.files.images import read_image, read_mask
from unet_jax.files.tiff_pages import LZW_IS_UNSAFE

SEED = int(os.environ.get("UNET_JAX_FUZZ_SEED", "0"))
MAX_SECONDS = 60  # for one file
MAX_MEMORY = 300 * 2**20  # what reading them all may take beyond the libraries

HEIGHT, WIDTH = 40, 50
CODECS = ["lzw", "zlib", "packbits", "zstd", "lzma"]
EXTREMES = [*range(10), 12, 16, 24, 32, 33, 64, 255, 256, 1000, 2**14, 2**15 - 1, 2**15, 2**16 - 1]
EXTREMES += [2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
EXTREMES += [32773, 32946, 34925, 50000]  # compressions

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOURS = {  # name, channels and possible bits of each colour type
    0: ("grey", 1, [1, 2, 4, 8, 16]),
    2: ("RGB", 3, [8, 16]),
    3: ("palette", 1, [1, 2, 4, 8]),
    4: ("grey and alpha", 2, [8, 16]),
    6: ("RGBA", 4, [8, 16]),
}
PNG_CHUNKS = b"IHDR PLTE IDAT tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT tIME tEXt zTXt iTXt"
# First column and row, distance of columns and rows of each pass of an interlaced PNG.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7 += [(0, 1, 1, 2)]


def pick(rng, choices):
    return choices[rng.integers(len(choices))]


def tiff_of(pixels, thumbnail=None, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    if thumbnail is not None:
        file.seek(0)
        tifffile.imwrite(file, thumbnail, append=True, subfiletype=1, metadata=None)
    return file.getvalue()


def ome_of_a_set(pages):
    """The OME metadata of a set of two files, this one being the second, backwards."""
    entries = "".join(
        f'<TiffData FirstT="{t}" IFD="{t if t < 3 else pages + 2 - t}" PlaneCount="1">'
        f'<UUID FileName="{"b" if t < 3 else "a"}.tif">{"sibling" if t < 3 else "me"}</UUID>'
        "</TiffData>"
        for t in range(3 + pages)
    )
    return (
        f'<OME UUID="me"><Image><Pixels DimensionOrder="XYCZT" SizeX="{WIDTH}" SizeY="{HEIGHT}" '
        f'SizeC="1" SizeZ="1" SizeT="{3 + pages}">{entries}</Pixels></Image></OME>'
    )


def random_tiff(rng, codec):
    """A TIFF of random layout."""
    writer = pick(rng, ["plain", "shaped", "imagej", "ome", "set"])
    dtype = pick(rng, ["u1", "u2", "f4"] if writer == "imagej" else ["u1", "u2", "i4", "f4", "?"])
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = rows + columns + rng.integers(0, 60, (pick(rng, [1, 1, 2, 5]), HEIGHT, WIDTH))
    axes, photometric, planar = pick(rng, ["CYX", "TYX"]), "minisblack", None
    if writer in ("plain", "shaped") and dtype in ("u1", "u2") and rng.random() < 0.3:
        pixels = np.stack([pixels, pixels + 9, pixels // 2], axis=1)
        axes, photometric, planar = "TSYX", "rgb", "separate"
        if rng.random() < 0.5:
            pixels, axes, planar = np.moveaxis(pixels, 1, -1), "TYXS", "contig"
    more = {}
    if dtype == "u1" and photometric != "rgb" and writer in ("plain", "shaped"):
        if rng.random() < 0.3:
            photometric, more["colormap"] = "palette", np.tile(np.arange(256, dtype="u2"), (3, 1))
        elif rng.random() < 0.3:
            more["thumbnail"] = pixels[0, ::2, ::2].astype(dtype)
    if rng.random() < 0.3:
        more["extratags"] = [(274, "H", 1, rng.integers(1, 9), False)]
    if writer == "set":
        more["description"] = ome_of_a_set(len(pixels))
    return tiff_of(
        pixels > 80 if dtype == "?" else pixels.astype(dtype),
        imagej=writer == "imagej",
        ome=writer == "ome",
        metadata=None if writer in ("plain", "set") else {"axes": axes},
        photometric=photometric,
        planarconfig=planar,
        bigtiff=writer != "imagej" and rng.random() < 0.3,
        byteorder=pick(rng, "<>"),
        compression=codec,
        predictor=bool(codec and dtype != "?" and rng.random() < 0.5),
        **more,
        **pick(rng, [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}]),
    )


def png_chunks(width, height, bits, colour, lines, interlaced=False):
    data = zlib.compress(lines)
    ramp = np.linspace(0, 255, 2**bits).astype(np.uint8)
    palette = [(b"PLTE", np.repeat(ramp, 3).tobytes())] if colour == 3 else []
    return [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)),
        *palette,
        (b"IDAT", data[:1000]),
        (b"IDAT", data[1000:]),
        (b"IEND", b""),
    ]


def random_png(rng, colour):
    """The chunks of a PNG of random layout, its alpha constant."""
    _, channels, possible_bits = PNG_COLOURS[colour]
    bits, interlaced = pick(rng, possible_bits), rng.random() < 0.3
    lines = b""
    for left, top, across, down in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        width, height = math.ceil((WIDTH - left) / across), math.ceil((HEIGHT - top) / down)
        line = rng.integers(0, 256, (height, math.ceil(width * channels * bits / 8)), np.uint8)
        filters = rng.integers(0, 5, (height, 1), np.uint8)
        if channels in (2, 4):
            line.reshape(height, width, channels, -1)[:, :, -1] = 255
            filters[:] = 0
        lines += np.hstack([filters, line]).tobytes()
    return png_chunks(WIDTH, HEIGHT, bits, colour, lines, interlaced)


def joined(chunks):
    """The PNG, with checksums that fit, so that libpng sees the damage."""
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"".join([PNG_SIGNATURE, *parts])


def numbers_in(tiff):
    """Position and size in bytes of each number by which a TIFF is decoded."""
    with tifffile.TiffFile(io.BytesIO(tiff)) as tif:
        width = tif.tiff.offsetsize
        places = [(tif.tiff.offsetsize if tif.is_bigtiff else 4, width)]
        for page in tif.pages:
            for tag in page.tags:
                code, kind, count = (tag.offset, 2), (tag.offset + 2, 2), (tag.offset + 4, width)
                places += [code, kind, count, (tag.offset + 4 + width, width)]
                size = tag.valuebytecount // tag.count
                if size <= 8:
                    places += [(tag.valueoffset + i * size, size) for i in range(min(tag.count, 9))]
            end = max(tag.offset for tag in page.tags) + 4 + 2 * width
            places.append((end, width))  # where the next page is
    return places


def damage(rng, data):
    """Changes bytes anywhere in a bytearray."""
    start, length = int(rng.integers(len(data) + 1)), pick(rng, [1, 2, 8, 64])
    end = min(start + length, len(data))
    match rng.integers(5):
        case 0:
            for position in rng.integers(0, len(data), length if data else 0):
                data[position] ^= 1 << rng.integers(8)
        case 1:
            data[start:end] = bytes([rng.integers(256)]) * (end - start)
        case 2:
            data[start:end] = rng.bytes(end - start)
        case 3:
            data[start:start] = rng.bytes(length)
        case 4:
            del data[start : pick(rng, [end, len(data)])]


def set_number(rng, tiff, places):
    """Makes a number of a bytearray extreme, or leads it anywhere in the file."""
    position, size = pick(rng, places)
    number = pick(rng, [pick(rng, EXTREMES), int(rng.integers(2 * len(tiff) + 1))])
    if position + size <= len(tiff):
        order = "little" if tiff[:1] == b"I" else "big"
        tiff[position : position + size] = (number % 256**size).to_bytes(size, order)


def mutated_tiff(rng, tiff, places):
    data = bytearray(tiff)
    for _ in range(pick(rng, [1, 1, 1, 2, 4])):
        if rng.random() < 0.5:
            damage(rng, data)
        else:
            set_number(rng, data, places)
    return bytes(data)


def mutated_png(rng, chunks):
    chunks = list(chunks)
    for _ in range(pick(rng, [1, 1, 2])):
        place = rng.integers(len(chunks))
        kind, data = chunks[place]
        match rng.integers(5):
            case 0:
                data = bytearray(data)
                damage(rng, data)
                chunks[place] = kind, bytes(data)
            case 1:
                header = bytearray(chunks[0][1])
                if header:
                    header[rng.integers(len(header))] = pick(rng, EXTREMES) % 256
                chunks[0] = b"IHDR", bytes(header)
            case 2:
                added = pick(rng, PNG_CHUNKS.split()), rng.bytes(pick(rng, [0, 1, 2, 6, 32]))
                chunks.insert(place, pick(rng, [added, (kind, data)]))
            case 3 if len(chunks) > 1:
                del chunks[place]
            case 4:
                lines = bytearray()
                with contextlib.suppress(zlib.error):
                    lines += zlib.decompress(b"".join(d for k, d in chunks if k == b"IDAT"))
                damage(rng, lines)
                others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
                chunks = [*others[:-1], (b"IDAT", zlib.compress(lines)), *others[-1:]]
    png = bytearray(joined(chunks))
    if rng.random() < 0.2:
        damage(rng, png)
    return bytes(png)


@functools.cache
def inflating_tiff(codec):
    """A TIFF of 2,000 pixels whose strip inflates to 1 GiB, of zlib or zstd."""
    megabyte = bytes(2**20)
    if codec == "zstd":
        strip = imagecodecs.zstd_encode(megabyte) * 2**10
    else:
        deflate = zlib.compressobj(wbits=-15)
        block = deflate.compress(megabyte) + deflate.flush(zlib.Z_FULL_FLUSH)
        adler = struct.pack(">HH", 2**30 % 65521, 1)
        strip = b"\x78\x9c" + block * 2**10 + b"\x03\x00" + adler
    return tiff_of(iter([strip]), shape=(HEIGHT, WIDTH), dtype=np.uint8, compression=codec)


def random_file(rng, kind):
    """A file's format and content, and a function that makes mutated copies of it."""
    if kind == "png":
        colour = pick(rng, list(PNG_COLOURS))
        chunks = random_png(rng, colour)
        return f"PNG {PNG_COLOURS[colour][0]}", joined(chunks), lambda: mutated_png(rng, chunks)
    codec = pick(rng, CODECS) if kind == "compressed" else None
    tiff = random_tiff(rng, codec)
    places = numbers_in(tiff)

    def mutate():
        if codec in ("zlib", "zstd") and rng.random() < 0.02:
            return inflating_tiff(codec)
        return mutated_tiff(rng, tiff, places)

    return f"TIFF {codec}", tiff, mutate


def read_or_refused(path, read=read_image):
    """The pixels, or why they are refused; what warns fails, what hangs ends the process."""
    faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
    try:
        with warnings.catch_warnings(action="error"):
            pixels = read(path)
    except InputError as error:
        (text,) = error.args
        assert text.startswith(f"{path}: ") and text.count(str(path)) == 1, text
        assert text.splitlines() == [text] and text.isprintable(), text
        return text.removeprefix(f"{path}: ")
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert pixels.ndim == 4 and 0 not in pixels.shape
    assert pixels.dtype.kind in "uif" and np.isfinite(pixels).all()
    return pixels


def declared_sizes(path):
    """Height and width of each page by the file's header, or width and height."""
    head = path.read_bytes()[:24]
    if head.startswith(PNG_SIGNATURE):
        return [struct.unpack(">II", head[16:])[::-1]]
    logging.disable()
    try:
        with tifffile.TiffFile(path) as tif:
            sizes = [(page.imagelength, page.imagewidth) for page in tif.pages]
            return sizes + [size[::-1] for size in sizes]  # turned
    finally:
        logging.disable(logging.NOTSET)


def never_empty(*args, _empty=np.empty, _count=itertools.count(), **kwargs):  # noqa: B008
    """numpy.empty, filled differently each time: a pixel that is never written is noticed."""
    array = _empty(*args, **kwargs)
    if not array.dtype.hasobject and array.nbytes < 2**20:
        array.reshape(-1).view(np.uint8)[:] = next(_count) % 251
    return array


def read_mutated_files(kind, count, seed, folder):
    """Writes to `results.jsonl` what became of each file; the last one is in `file`."""
    logging.basicConfig(level=logging.DEBUG)  # whatever a library logs is printed
    logging.getLogger("numba").setLevel(logging.INFO)  # it says at length how it compiles
    logging.getLogger("unet_jax").propagate = False
    logging.getLogger("unet_jax").addHandler(logging.NullHandler())
    rng = np.random.default_rng(seed)
    path = folder / "file"
    path.write_bytes(tiff_of(np.zeros((9, 9), np.uint8), compression="lzw"))
    assert not isinstance(read_or_refused(path), str)  # loads Numba
    importlib.import_module("numpy.ma")  # which cannot be loaded any more
    np.empty = never_empty
    start = peak_bytes()
    with (folder / "results.jsonl").open("w") as results:
        for index in range(count):
            if index % 10 == 0:
                name, content, mutate = random_file(rng, kind)
                path.write_bytes(content)
                read = pick(rng, [read_image, read_mask])
                original = read_or_refused(path, read)
                assert not isinstance(original, str), original
            path.write_bytes(mutate())
            began = time.perf_counter()
            found = read_or_refused(path, read)
            seconds = time.perf_counter() - began
            if isinstance(found, str):
                outcome = "undecodable" if found.startswith("cannot be decoded") else "refused"
            else:
                outcome = "same" if np.array_equal(found, original) else "changed"
                assert found.shape[1:3] in declared_sizes(path)
                assert np.array_equal(found, read_or_refused(path, read))
            print(json.dumps([name, outcome, seconds, peak_bytes() - start]), file=results)


def short_and_slow(**cases):
    """Parameters (case, count) out of case=(short count, slow count)."""
    return [
        pytest.param(case, count, marks=[pytest.mark.slow] * is_slow)
        for case, counts in cases.items()
        for is_slow, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("kind", "count"),
    short_and_slow(plain=(150, 3_000), compressed=(300, 10_000), png=(200, 2_000)),
)
def test_mutated_files_are_valid_or_refused_in_one_line(run, tmp_path, kind, count):
    program = ["-m", "tests.reliability.test_fuzz_images", kind, count, SEED, tmp_path]
    assert run(*program) == (0, "", ""), f"on {tmp_path / 'file'}"
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    names, outcomes, seconds, memory = zip(*map(json.loads, lines), strict=True)
    counts = collections.Counter(zip(names, outcomes, strict=True))
    print(*(f"{n} {name}: {outcome}" for (name, outcome), n in sorted(counts.items())), sep="\n")
    print(f"slowest {max(seconds):.3f} s, memory {max(memory) / 2**20:.0f} MiB")
    assert len(lines) == count
    assert max(seconds) < MAX_SECONDS
    assert max(memory) < MAX_MEMORY
    # The mutations reach the decoders, and some pass them.
    for outcome in ("same", "changed", "undecodable", "refused"):
        assert outcomes.count(outcome) >= 0.01 * count, outcome


def put_files(rng, clean):
    """Writes a user's TIFF files, a few of them mutated; returns these, as read or refused."""
    for folder in {path.parent for path in clean}:
        for path in folder.iterdir():
            path.unlink()
    for path, pixels in clean.items():
        tifffile.imwrite(path, pixels)
    found = {}
    for path in rng.permutation(list(clean))[: pick(rng, [1, 1, 1, 6])]:
        pixels = clean[path]
        path.unlink()
        if rng.random() < 0.3:
            path = path.with_suffix(".png")
            lines = np.pad(pixels, ((0, 0), (1, 0))).tobytes()
            content = mutated_png(rng, png_chunks(*pixels.shape[::-1], 8, 0, lines))
        else:
            pixels = pixels.astype(pick(rng, ["u1", "u2", "f4", "f8"]))
            layout = pick(rng, [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}])
            tiff = tiff_of(pixels, compression=pick(rng, [None, *CODECS]), **layout)
            content = mutated_tiff(rng, tiff, numbers_in(tiff))
        path.write_bytes(content)
        found[path] = read_or_refused(path)
    return found


def all_files(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


@pytest.mark.parametrize("runs", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_programs_use_mutated_files_or_refuse_each_in_one_line(run, folder_data, tmp_path, runs):
    rng = np.random.default_rng(SEED)
    images, masks = tmp_path / "images", tmp_path / "masks"
    files = sorted([*images.iterdir(), *masks.iterdir()])
    clean = {path: tifffile.imread(path) for path in files}
    statuses = []
    while (index := len(statuses)) < runs:
        found = put_files(rng, clean)
        refused = [path for path, pixels in found.items() if isinstance(pixels, str)]
        fits = [path for path, pixels in found.items() if np.shape(pixels) == (1, 60, 60, 1)]
        # The first run trains what others evaluate, the second one is refused.
        if index == 0 and [path for path in fits if path.parent == images] != list(found):
            continue
        if index == 1 and not refused:
            continue

        before, out = all_files(tmp_path), tmp_path / f"out{index}"
        if index % 2 == 0:
            command = ["train.py", *folder_data, "--config.train.steps=2", f"--workdir={out}"]
        else:
            command = ["eval.py", f"--checkpoint={tmp_path / 'out0'}", f"--out={out}"]
            command += [f"--images={images}", f"--labels={masks}"]
        status, output, errors = run(*command)
        print(index, len(found), len(refused), status, errors if status else "")
        statuses.append(status)
        lines = errors.splitlines()
        problems = [line for line in lines if line.startswith(f"{command[0]}: ")]
        for path in refused:
            assert sum(f": {path}: " in problem for problem in problems) == 1, errors
        if status == 0:
            assert out.is_dir() and not problems
        else:
            assert (status, output) == (2, "") and problems, errors
            assert len(set(lines)) == len(lines)
            assert all(f"{images}" in line or f"{masks}" in line for line in lines), errors
            assert all_files(tmp_path) == before
    assert statuses[:2] == [0, 2]
    assert min(statuses.count(0), statuses.count(2)) >= runs // 20


# What the mutations have found, without chance.


@pytest.mark.parametrize(
    ("tile", "tags", "reason"),
    [
        # Two of three channels were never written.
        (None, {284: 3}, "page 0 has planar configuration 3"),
        # 14 seconds, 500 MB.
        ((16, 32), {322: 2**24, 323: (1, 2, 3, 4)}, "page 0 has several widths or heights"),
    ],
)
def test_tags_that_cannot_be_are_refused(tmp_path, tile, tags, reason):
    pixels = np.zeros((1, 3, HEIGHT, WIDTH), np.uint8)
    options = {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"}
    (tmp_path / "file").write_bytes(tiff_of(pixels, tile=tile, **options))
    with tifffile.TiffFile(tmp_path / "file", mode="r+") as tif:
        for tag, value in tags.items():
            tif.pages[0].tags[tag].overwrite(value)
    assert read_or_refused(tmp_path / "file").startswith(reason)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    ("codes", "pixels"), [([256, 7, 8, 258, 257], [7, 8, 7, 8]), ([256, 300, 7, 8, 9, 257], None)]
)
def test_lzw_codes_that_lead_to_memory_never_written_are_refused(tmp_path, codes, pixels, is_old):
    """They ended the process."""
    strip = lzw_of(codes, is_old)
    tiff = tiff_of(iter([strip]), shape=(1, 4), dtype=np.uint8, compression="lzw")
    (tmp_path / "file").write_bytes(tiff)
    found = read_or_refused(tmp_path / "file")
    if pixels:
        assert found.ravel().tolist() == pixels
    elif LZW_IS_UNSAFE:
        assert found == "page 0 cannot be decoded because its LZW data is damaged"
    else:
        assert found.startswith("cannot be decoded because it is damaged (")


@pytest.mark.parametrize("is_old", [False, True])
def test_lzw_data_is_looked_through_just_where_the_decoder_needs_it(is_old):
    """If not, `LZW_IS_UNSAFE` names a wrong version."""
    script = "import imagecodecs, sys; imagecodecs.lzw_decode(bytes.fromhex(sys.argv[1]))"
    strip = lzw_of([256, 300, 7, 8, 9, 257], is_old).hex()
    run = subprocess.run([sys.executable, "-c", script, strip], capture_output=True, text=True)
    assert ("returned IMCD_LZW_CORRUPT" in run.stderr) != LZW_IS_UNSAFE, (
        run.returncode,
        run.stderr,
    )


def lzw_of(codes, is_old):
    """LZW data of up to 253 codes."""
    bits = "".join(f"{code:09b}" for code in (reversed(codes) if is_old else codes))
    length = -(-len(bits) // 8)
    if is_old:
        return int(bits, 2).to_bytes(length, "little")
    return int(bits.ljust(8 * length, "0"), 2).to_bytes(length, "big")


def test_refused_png_gives_everything_back(tmp_path):
    """Its pixels were lost, and one count of None each: after thousands Python 3.11 aborted."""

    def memory():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    lines = bytes(3001 * 2999)  # the last is missing
    (tmp_path / "file").write_bytes(joined(png_chunks(3000, 3000, 8, 0, lines)))
    read_or_refused(tmp_path / "file")  # it loads what is used
    gc.collect()
    before, references = memory(), sys.getrefcount(None)
    for _ in range(50):
        assert "Not enough image data" in read_or_refused(tmp_path / "file")
    assert memory() - before < 100  # MiB, of 430
    gc.collect()
    assert abs(sys.getrefcount(None) - references) < 25


if __name__ == "__main__":
    kind, count, seed, folder = sys.argv[1:]
    read_mutated_files(kind, int(count), int(seed), Path(folder))
