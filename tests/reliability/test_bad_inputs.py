"""Each row of "Bad input: what to do with each": what is refused, and what is taken instead.

A refusal is exit status 2 and one line on standard error for each problem, which names the file and
page, what was found and what was expected. There is no traceback, and nothing is written.

The rows about a run that goes on with another configuration, damaged checkpoints, a full disk, lack
of memory and a loss of NaN have files of their own beside this one.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import runpy
import shutil
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from absl import flags

from tests.reliability.conftest import ROOT, TINY
from tests.test_cell_tracking import made_up_cells, write_frame
from tests.test_image_files import png_bytes, png_of_header, tiff_bytes, with_tags
from unet_jax import load, predict_tiled, read_images
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.errors import InputError
from unet_jax.files import decoding
from unet_jax.run.log import read_log

HEIGHT, WIDTH = 40, 48
PICTURE, CELLS = synthetic_em(0, height=HEIGHT, width=WIDTH)
MASK = (CELLS > 0).astype(np.uint8)
RGB = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
RGBA = np.dstack([RGB, PICTURE])
GREY = dict(photometric="minisblack")

PROGRAMS = "train.py", "eval.py"
ALL = *PROGRAMS, "read_images"  # what reads images alone, for prediction


def write_folder(folder):
    for i, name in enumerate("abcde"):
        picture, cells = synthetic_em(i, height=HEIGHT, width=WIDTH)
        for part, pixels in (("images", picture), ("masks", (cells > 0).astype(np.uint8))):
            (folder / part).mkdir(exist_ok=True)
            tifffile.imwrite(folder / part / f"{name}.tif", pixels)


def train_options(folder):
    return [
        "--config=configs/folder.py",
        *(option for option in TINY if "config.data" not in option and "configs" not in option),
        "--config.train.steps=2",
        f"--config.data.images={folder / 'images'}",
        f"--config.data.labels={folder / 'masks'}",
        f"--workdir={folder / 'run'}",
    ]


def call(program, *arguments):
    """Runs a program in this process, without the 5 s of a start: status, lines on stderr.

    What is doubted of these few made-up images is no matter here.
    """
    known = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as errors:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setattr(logging.root, "handlers", [])
        try:
            with pytest.raises(SystemExit) as end, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
                runpy.run_path(program, run_name="__main__")
        finally:
            flags.FLAGS.remove_flag_values(set(flags.FLAGS) - known)
            flags.FLAGS.unparse_flags()
            sys.modules.pop(f"unet_jax.programs.{Path(program).stem}", None)
    lines = errors.getvalue().splitlines()
    return end.value.code, [line for line in lines if not line.startswith("Warning: ")]


def notices(lines):
    """The lines without those of progress bars."""
    return [line for line in lines if line.strip() and "%|" not in line]


def snapshot(*folders):
    return {path: path.lstat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of one channel and two classes."""
    folder = tmp_path_factory.mktemp("trained")
    write_folder(folder)
    status, lines = call("train.py", *train_options(folder))
    assert status == 0, lines
    return folder / "run"


@pytest.fixture
def folder(tmp_path):
    """Five good images with their masks of 0 and 1."""
    write_folder(tmp_path)
    return tmp_path


@pytest.fixture
def arguments(folder, trained):
    """What trains on the folder, and what scores a network on it."""
    own = [f"--images={folder / 'images'}", f"--labels={folder / 'masks'}"]
    return {
        "train.py": train_options(folder),
        "eval.py": [f"--checkpoint={trained}", *own, f"--out={folder / 'out'}"],
    }


@pytest.fixture
def refusals(arguments, folder, trained, capfd):
    """The lines with which each way to read the folder refuses it."""

    def refuse(way, options):
        if way == "read_images":
            with pytest.raises(InputError) as refusal:
                read_images(folder / "images", 1)
            return list(refusal.value.args)
        status, lines = call(way, *arguments[way], *options)
        assert status == 2, lines
        assert all(line.startswith(f"{way}: ") for line in lines), lines
        return [line.removeprefix(f"{way}: ") for line in lines]

    def refusals(*options, ways=PROGRAMS):
        before = snapshot(folder, trained)
        capfd.readouterr()
        told = {way: refuse(way, options) for way in ways}
        assert capfd.readouterr() == ("", "")
        assert snapshot(folder, trained) == before
        assert not any("\n" in line for lines in told.values() for line in lines)
        return told

    return refusals


def assert_refused(refusals, file, *says, ways=PROGRAMS, options=()):
    """One line names the file and says all that."""
    for way, lines in refusals(*options, ways=ways).items():
        assert len(lines) == 1, (way, lines)
        assert lines[0].startswith(f"{file}: "), (way, lines)
        assert all(text in lines[0] for text in says), (way, lines)


def pages_of(*arrays):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for array in arrays:
            writer.write(array)
    return file.getvalue()


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


STACK = tiff_bytes(np.stack([PICTURE] * 2), **GREY)
PLAIN, ZLIB = (tiff_bytes(PICTURE, compression=c, metadata=None) for c in (None, "zlib"))
NOT_A_NUMBER = [np.stack([PICTURE, bad * np.ones_like(PICTURE)]) for bad in (np.nan, np.inf, 1e31)]

# Row, what is stored as c.tif, what was found, what was expected (empty: the decoder's own words).
FILES = [
    ("truncated", PLAIN[:-1], "page 0 is truncated", "expected 1,920 bytes"),
    ("truncated", ZLIB[:-9], "page 0 is truncated", "expected 1,920 bytes"),
    ("truncated", png_bytes(PICTURE)[:-20], "is truncated at", "expected the end of a PNG"),
    ("truncated", PLAIN[:6], "is damaged", ""),
    ("empty", b"", "is empty", "expected a TIFF or PNG image"),
    ("not a TIFF", b"<html>\n", "begins with b'<htm'", "expected a TIFF or PNG image"),
    ("header-only TIFF", b"II*\0\0\0\0\0", "holds no page", "expected an image"),
    ("header-only TIFF", with_tags(PLAIN, {256: 0}), "page 0 has size 0", "expected an image"),
    ("header-only TIFF", png_of_header(0, 40, b""), "is damaged", ""),
    ("pages of different sizes", pages_of(PICTURE, PICTURE[1:]), "page 1 is (39, 48)", "(40, 48)"),
    ("pages of different sizes", pages_of(PICTURE, PICTURE * 1.0), "page 1", "expected (40, 48)"),
    ("half-written", STACK[: len(STACK) // 2], "page 0 is truncated", "expected 1,920 bytes"),
    ("half-written", STACK[:-200], "is truncated or damaged after page 0", ""),
    ("half-written", STACK.replace(b"[2, 40, 48]", b"[9, 40, 48]"), "2 page(s)", "description"),
    ("mutated bytes", with_tags(PLAIN, {258: 16}), "page 0 is truncated", "expected 3,840 bytes"),
    ("mutated bytes", with_tags(ZLIB, {257: 41}), "page 0 is truncated", "expected 1,968 bytes"),
    ("mutated bytes", with_tags(ZLIB, {256: 24}), "is damaged", ""),
    ("mutated bytes", flipped(ZLIB, len(ZLIB) // 2), "is damaged", ""),
    ("mutated bytes", flipped(png_bytes(PICTURE), 99), "chunk b'IDAT'", "its checksum"),
    ("codec", tiff_bytes(PICTURE, compression="jpeg"), "JPEG", "expected Deflate, LZW"),
    ("RGBA", tiff_bytes(RGBA, extrasamples=[2]), "alpha channel is not constant", "expected an"),
    (
        "MinIsWhite",
        tiff_bytes(PICTURE, photometric="miniswhite"),
        "inverted (MinIsWhite)",
        "expected plain grey levels or RGB",
    ),
    *(
        ("NaN, Inf", tiff_bytes(pixels), "page 1 holds NaN", "expected numbers up to 1e+30")
        for pixels in NOT_A_NUMBER
    ),
    ("complex", tiff_bytes(PICTURE * 1j), "complex128", "expected integer or floating"),
]


@pytest.mark.parametrize(
    ("content", "found", "expected"), [row[1:] for row in FILES], ids=[row[0] for row in FILES]
)
def test_files_that_cannot_be_read(refusals, folder, content, found, expected):
    for part, ways in (("images", ALL), ("masks", PROGRAMS)):
        file = folder / part / "c.tif"
        good = file.read_bytes()
        file.write_bytes(content)
        assert_refused(refusals, file, found, expected, ways=ways)
        file.write_bytes(good)


@pytest.mark.parametrize(
    "content",
    [
        png_bytes(PICTURE, "P"),
        tiff_bytes(PICTURE, photometric="palette", colormap=np.zeros((3, 256), "u2")),
    ],
    ids=["PNG", "TIFF"],
)
def test_images_of_many_colours_are_refused(refusals, folder, content):
    """Of a mask the numbers count, whatever their colours."""
    file = folder / "images" / "c.tif"
    file.write_bytes(content)
    says = "palette", "expected plain grey levels or RGB"
    assert_refused(refusals, file, *says, ways=ALL)


# Row: decompression bombs.
def test_bombs_are_refused_without_the_memory_they_ask_for(refusals, folder):
    huge = {256: 100_000, 257: 100_000, 278: 100_000}
    inflated = zlib.compress(bytes(2**28), 1)
    bombs = [
        (with_tags(ZLIB, huge), "declares 10,000,000,000 bytes", "expected at most 67,108,864"),
        (png_of_header(99_999, 99_999, b""), "declares 9,999,800,001 bytes", "at most 67,108,864"),
        (with_tags(ZLIB, {273: len(ZLIB), 279: len(inflated)}) + inflated, "is damaged", ""),
    ]
    for content, found, expected in bombs:
        file = folder / "images" / "c.tif"
        file.write_bytes(content)
        tracemalloc.start()
        assert_refused(refusals, file, found, expected, ways=ALL)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**25


# Row: LZW and friends without their codec. It is no extra: it always comes with the package.
def test_every_lossless_compression_is_read(arguments, folder):
    needed = importlib.metadata.requires("unet-jax")
    assert any(r.startswith("imagecodecs") and "extra" not in r for r in needed)
    before = read_images(folder / "images", 1)
    for (name, image), codec in zip(
        before, ["lzw", "zlib", "packbits", "zstd", "lzma"], strict=True
    ):
        tifffile.imwrite(folder / "images" / f"{name}.tif", image, compression=codec)
    for (_, expected), (_, image) in zip(before, read_images(folder / "images", 1), strict=True):
        np.testing.assert_array_equal(image, expected, strict=True)
    assert call("train.py", *arguments["train.py"])[0] == 0


# Row: RGB, RGBA, palette, MinIsWhite; what cannot be read at all is in the table above.
def test_the_number_of_channels_is_told(refusals, folder):
    image, mask = folder / "images" / "c.tif", folder / "masks" / "c.tif"
    tifffile.imwrite(image, RGB)
    assert_refused(refusals, image, "has 3 channel(s), expected 1 as in a.tif", ways=["train.py"])
    network = "has 3 channel(s), expected 1 that the network takes"
    assert_refused(refusals, image, network, ways=["eval.py", "read_images"])
    tifffile.imwrite(image, PICTURE)
    tifffile.imwrite(mask, RGB)
    assert_refused(refusals, mask, "has 3 channels, expected one")


def test_channels_that_say_nothing_are_dropped_with_a_notice(arguments, folder):
    opaque = np.full_like(PICTURE, 255)
    tifffile.imwrite(
        folder / "images" / "c.tif", np.dstack([PICTURE] * 3 + [opaque]), extrasamples=[2]
    )
    status, lines = call("train.py", *arguments["train.py"])
    assert status == 0 and notices(lines) == [
        f"{folder / 'images'}: a constant alpha channel is dropped",
        f"{folder / 'images'}: R, G and B are equal and are read as one channel",
    ]
    ((_, image),) = read_images(folder / "images" / "c.tif", 1)
    np.testing.assert_array_equal(image, PICTURE, strict=True)


def test_colour_is_taken_by_a_network_for_colour(folder):
    tifffile.imwrite(folder / "rgb.tif", RGB)
    ((_, image),) = read_images(folder / "rgb.tif", 3)
    np.testing.assert_array_equal(image, RGB, strict=True)
    with pytest.raises(InputError, match=r"c.tif: has 1 channel\(s\), expected 3 that the network"):
        read_images(folder / "images" / "c.tif", 3)


# Row: 8, 16, 32 bit, float.
def test_the_range_of_grey_values_is_that_of_the_whole_image(trained, folder):
    model = load(trained)
    assert model.percentiles == model.record.percentiles == (1, 99)
    picture = np.tile(PICTURE.astype(float), (3, 3))
    picture[:, WIDTH:] /= 8  # a tile on its own would be brightened
    expected = predict_tiled(model, picture)
    alone = predict_tiled(model, picture[:, WIDTH:])
    assert np.abs(alone - expected[:, WIDTH:]).max() > 0.01
    for dtype, factor in [("f4", 1 / 255), ("f8", 1e3), ("u2", 257), ("i4", 2**20), ("u4", 2**23)]:
        tifffile.imwrite(folder / "image.tif", (picture * factor).astype(dtype))
        ((_, image),) = read_images(folder / "image.tif", 1)
        assert image.dtype == dtype
        for side in (None, 44, 108):
            found = predict_tiled(model, image, tile_side=side)
            np.testing.assert_allclose(found, expected, atol=2e-3)


# Row: NaN, Inf; in files they are in the table above.
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e31])
def test_arrays_with_nan_are_not_predicted(trained, bad):
    image = PICTURE.astype(float)
    image[20, 20] = bad
    with pytest.raises(ValueError, match="^The image holds NaN, infinite or huge pixels"):
        predict_tiled(load(trained), image)


@pytest.mark.parametrize("far", [-1e20, 1e9])
def test_pixels_too_far_from_the_others(refusals, trained, folder, far):
    image = PICTURE.astype(np.float32)
    image[20, 20] = far
    for name in "bc":
        tifffile.imwrite(folder / "images" / f"{name}.tif", image)
    for lines in refusals(ways=ALL).values():
        for name, line in zip("bc", lines, strict=True):
            assert line.startswith(
                f"{folder / 'images' / name}.tif: page 0 holds a pixel of {far:g}"
            )
            assert "expected all within 1e+06 standard" in line and line.endswith("by the median")
    with pytest.raises(ValueError, match="^The image holds a pixel of .* most are about"):
        predict_tiled(load(trained), image)
    image[20, 20] = 65535  # a hot pixel of a 16-bit camera
    assert np.isfinite(predict_tiled(load(trained), image)).all()


def test_huge_pixels_that_are_like_the_others(arguments, folder):
    rng = np.random.default_rng(0)
    for file in (folder / "images").iterdir():
        noise = rng.choice(np.float32([-1e30, 1e30]), (HEIGHT, WIDTH))
        tifffile.imwrite(file, noise)
    for program in PROGRAMS:
        assert call(program, *arguments[program])[0] == 0
    assert_finite(folder)


# Row: labels 0/1, 0/255, instance ids, more classes than configured.
def with_values(*values, dtype=np.uint8):
    return np.resize(np.array(values, dtype), (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("rule", "mask", "found", "expected"),
    [
        ("binary", CELLS.astype(np.uint16), "mask values 0, 1, 2 do not fit", "with 3 classes"),
        ("classes", with_values(0, 1, 2), "0, 1, 2 do not fit mask_rule 'classes'", "2 classes"),
        ("classes", with_values(0, 255), "0, 255 do not fit", "write the same number in all"),
        ("instances", with_values(0, -3, dtype=np.int16), "mask values -3, 0", "no rule fits"),
        ("binary", with_values(0, 0.5, dtype=np.float32), "from 0 to 0.5", "expected whole"),
    ],
)
def test_masks_that_break_their_rule(refusals, folder, rule, mask, found, expected):
    file = folder / "masks" / "c.tif"
    tifffile.imwrite(file, mask)
    for way, option in zip(PROGRAMS, ("--config.data.mask_rule", "--mask_rule"), strict=True):
        options = [f"{option}={rule}"]
        assert_refused(refusals, file, found, expected, ways=[way], options=options)


def test_masks_of_0_and_255_are_binary_with_a_notice(arguments, folder):
    status, lines = call("train.py", *arguments["train.py"])
    assert (status, notices(lines)) == (0, [])
    log = folder / "run" / "log.jsonl"
    losses = [row["loss"] for row in read_log(log) if "loss" in row]
    shutil.rmtree(folder / "run")
    for file in (folder / "masks").iterdir():
        tifffile.imwrite(file, tifffile.imread(file) * np.uint8(255))
    for program in PROGRAMS:
        status, lines = call(program, *arguments[program])
        expected = f"{folder / 'masks'}: mask values 0 and 255 are read as classes 0 and 1"
        found = [line for line in notices(lines) if "were seen in training" not in line]
        assert (status, found) == (0, [expected])
    assert losses == [row["loss"] for row in read_log(log) if "loss" in row]


# Row: image and label of different shape or count.
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH - 1), (WIDTH, HEIGHT), (2, HEIGHT, WIDTH)])
def test_masks_of_another_shape(refusals, folder, shape):
    file = folder / "masks" / "c.tif"
    tifffile.imwrite(file, np.zeros(shape, np.uint8), **GREY)
    found = f"are {shape if len(shape) == 3 else (1, *shape)}"
    assert_refused(refusals, file, found, f"expected {(1, HEIGHT, WIDTH)} as in c.tif")


@pytest.mark.parametrize(
    ("part", "says"), [("masks", "1 file(s) without a mask"), ("images", "without an image")]
)
def test_files_without_their_partner(refusals, folder, part, says):
    (folder / part / "c.tif").unlink()
    for lines in refusals().values():
        assert len(lines) == 1 and says in lines[0]
        assert f"in {folder / part}: c.tif; expected the same names" in lines[0]


def test_too_few_files_to_train_validate_and_test(refusals, folder):
    for file in [*folder.glob("*/[abc].tif")]:
        file.unlink()
    ((line,),) = refusals(ways=["train.py"]).values()
    assert line.startswith("d: 40 x 48 pixels are too few to be cut into training")


def test_one_image_is_cut_and_found_again(arguments, trained, folder):
    for part in ("images", "masks"):
        pages = [tifffile.imread(file) for file in sorted((folder / part).iterdir())]
        for file in (folder / part).iterdir():
            file.unlink()
        tifffile.imwrite(folder / part / "a.tif", np.concatenate(pages))
    status, lines = call("train.py", *arguments["train.py"])
    assert status == 0
    (notice,) = notices(lines)
    blocks = "a rows 0 to 135", "a rows 136 to 167", "a rows 168 to 199"
    assert all(block in notice for block in blocks)
    assert call("eval.py", f"--checkpoint={folder / 'run'}")[0] == 0
    report = json.loads((folder / "run" / "evaluation" / "report.json").read_text())
    assert [image["name"] for image in report["images"]] == ["a rows 168 to 199"]


# Row: label without one of the classes, or with one class only.
def assert_finite(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} in {folder}")

    for file in (folder / "run" / "log.jsonl", folder / "out" / "report.json"):
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        for line in lines:
            json.loads(line, parse_constant=refuse)


@pytest.mark.parametrize("only", [0, 1])
def test_masks_of_one_class_only(refusals, arguments, trained, folder, only):
    for file in (folder / "masks").iterdir():
        tifffile.imwrite(file, np.full((HEIGHT, WIDTH), only, np.uint8))
    ((line,),) = refusals(ways=["train.py"]).values()
    assert line.startswith(f"All annotated pixels of the train split are of class {only}, so there")
    shutil.copytree(trained, folder / "run")
    assert call("eval.py", *arguments["eval.py"])[0] == 0
    assert_finite(folder)


def test_masks_that_are_ignored_everywhere(refusals, folder):
    for file in (folder / "masks").iterdir():
        tifffile.imwrite(file, np.full((HEIGHT, WIDTH), 255, np.uint8))
    ((line,),) = refusals("--config.data.ignore_value=255", ways=["train.py"]).values()
    assert line.startswith(
        "All pixels of the train split are ignored, expected some annotated ones; "
    )


# Row: smaller than the receptive field, 1 pixel, odd sizes, long thin.
def test_images_of_any_size(arguments, trained, folder):
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, WIDTH), (HEIGHT, 3), (7, 5), (HEIGHT, WIDTH)]
    for name, size in zip("abcde", sizes, strict=True):
        tifffile.imwrite(folder / "images" / f"{name}.tif", rng.integers(0, 255, size, np.uint8))
        tifffile.imwrite(folder / "masks" / f"{name}.tif", rng.integers(0, 2, size, np.uint8))
    for program in PROGRAMS:
        assert call(program, *arguments[program])[0] == 0
    assert_finite(folder)
    model = load(trained)
    for size in [*sizes, (301, 2), (45, 43)]:
        output = predict_tiled(model, rng.random(size))
        assert output.shape == (*size, 2)
        np.testing.assert_allclose(output.sum(-1), 1, rtol=1e-5)
    # One pixel is an image of one grey value; its place on the max-pooling grid makes a difference.
    flat = predict_tiled(model, np.full((30, 30), 5))
    np.testing.assert_allclose(predict_tiled(model, np.array([[200]]))[0, 0], flat[0, 0], 1e-5)


# Row: larger than memory.
def test_files_beyond_the_budget(refusals, folder, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    file = folder / "images" / "c.tif"
    tifffile.imwrite(file, np.zeros((101, 100), np.uint8))
    says = "declares 10,100 bytes of pixels, expected at most 10,000"
    assert_refused(refusals, file, says, ways=ALL)


def test_large_images_are_predicted_by_tiles(trained, folder):
    image = np.memmap(folder / "large.raw", np.uint8, "w+", shape=(2500, 2500))
    image[::7] = 200
    model = load(trained)
    predict_tiled(model, image[:2000, :2000])  # compiles
    tracemalloc.start()
    output = predict_tiled(model, image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert output.shape == (2500, 2500, 2)
    assert peak - output.nbytes < image.size * 4 - 2**20  # there is no copy of float32


# Row: checkpoint of another architecture, damaged, missing.
def test_checkpoint_missing(refusals, folder):
    (folder / "empty").mkdir()
    for name in ("none", "empty", "images/a.tif"):
        options = [f"--checkpoint={folder / name}"]
        says = "no checkpoint in this folder"
        assert_refused(refusals, folder / name, says, ways=["eval.py"], options=options)
        before = snapshot(folder)
        with pytest.raises(InputError, match=says):
            load(folder / name)
        assert snapshot(folder) == before


def test_checkpoint_of_another_architecture(refusals, trained, folder):
    workdir = folder / "other"
    shutil.copytree(trained, workdir)
    (description,) = workdir.glob("checkpoints/*/checkpoint.json")
    manifest = description.with_name("sha256.json")
    record = json.loads(description.read_text())
    record["model"]["width"] = record["config"]["model"]["width"] = 4
    description.write_text(json.dumps(record))
    digest = hashlib.sha256(description.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {description.name: digest}))
    params = description.with_name("params")
    says = "belongs to another network: "
    options = [f"--checkpoint={workdir}"]
    assert_refused(refusals, params, says, ways=["eval.py"], options=options)
    with pytest.raises(InputError, match=r"network: \S+ is \(.*2\,?\) float32, expected \(.*4"):
        load(workdir)


# Row: output folder read-only, disk full. What cannot be made is found without any rights.
@pytest.mark.parametrize("name", ["file", "file/in/it"])
def test_output_folder_that_cannot_be_made(refusals, folder, name):
    (folder / "file").touch()
    for way, flag in [("train.py", "workdir"), ("eval.py", "out")]:
        options = [f"--{flag}={folder / name}"]
        assert_refused(
            refusals, folder / name, "cannot be written to (", ways=[way], options=options
        )


# All problems at once, before step 0.
def test_all_problems_of_a_folder_at_once(refusals, arguments, run, folder):
    images, masks = folder / "images", folder / "masks"
    (images / "a.tif").write_bytes(b"")
    (images / "b.tif").write_bytes(flipped(png_bytes(PICTURE), 99))
    (images / "c.tif").write_bytes(tiff_bytes(NOT_A_NUMBER[0]))
    tifffile.imwrite(masks / "d.tif", MASK[1:])
    tifffile.imwrite(masks / "e.tif", with_values(0, 1, 2))
    bad = [images / "a.tif", images / "b.tif", images / "c.tif", masks / "d.tif", masks / "e.tif"]
    told = refusals()
    for way, lines in told.items():
        assert [line.split(": ")[0] for line in lines] == [str(file) for file in bad]
        # And as a user starts it.
        status, output, errors = run(way, *arguments[way])
        assert (status, output) == (2, "")
        assert errors.splitlines() == [f"{way}: {line}" for line in lines]
    (lines,) = refusals(ways=["read_images"]).values()
    assert lines == told["eval.py"][:3]


def test_both_folders_missing_or_with_names_twice(refusals, folder):
    for part in ("images", "masks"):
        shutil.copy(folder / part / "a.tif", folder / part / "a.png")
    twice = [f"{folder / part / 'a.tif'}: a.png has the same name" for part in ("images", "masks")]
    for lines in refusals().values():
        assert [line.split(", expected")[0] for line in lines] == twice
    for part in ("images", "masks"):
        (folder / part).rename(folder / f"my {part}")
    for lines in refusals().values():
        assert [line.split(",")[0] for line in lines] == [
            f"{folder / part}: is not a folder" for part in ("images", "masks")
        ]


def test_masks_that_break_their_rule_are_all_named(refusals, folder):
    for name in "bde":
        tifffile.imwrite(folder / "masks" / f"{name}.tif", with_values(0, 1, 2))
    says = "nor do those of d.tif, e.tif; all masks fit"
    assert_refused(refusals, folder / "masks" / "b.tif", says)


def test_all_problems_of_the_cell_tracking_layout_at_once(refusals, folder):
    dataset = folder / "sequences"
    for sequence in ("01", "02"):
        for number in ("002", "010", "033"):
            for truth in ("GT", "ST"):
                write_frame(dataset, sequence, number, made_up_cells(), truth)
    first, second = dataset / "01_GT" / "SEG", dataset / "02_GT" / "SEG"
    (dataset / "01" / "t002.tif").write_bytes(b"")
    tifffile.imwrite(first / "man_seg002.tif", made_up_cells() * np.int16(-1))
    (first / "man_seg033.tif").rename(first / "man_seg034.tif")
    tifffile.imwrite(second / "man_seg002.tif", made_up_cells()[1:])
    (dataset / "02" / "t010.tif").write_bytes(PLAIN[:-1])
    before = snapshot(folder)
    status, lines = call(
        "train.py",
        "--config=configs/phc_u373.py",
        f"--config.data.dataset={dataset}",
        "--config.data.truth=silver",
        f"--workdir={folder / 'run'}",
    )
    assert status == 2 and snapshot(folder) == before
    expected = [
        f"{dataset / '01' / 't002.tif'}: is empty, expected a TIFF",
        f"{first / 'man_seg002.tif'}: holds int32 pixels from -300 to 0, expected the numbers",
        f"{first / 'man_seg034.tif'}: has no image t034.tif in",
        f"{second / 'man_seg002.tif'}: has (29, 90) pixels, expected (30, 90) as in t002.tif",
        f"{dataset / '02' / 't010.tif'}: page 0 is truncated, expected 1,920 bytes",
    ]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(f"train.py: {start}")


def test_all_wrong_values_of_a_configuration_at_once(refusals):
    wrong = {"train.batch_size": -3, "optimiser.momentum": 1.5, "weight_map.sigma": 0.0}
    options = [f"--config.{key}={value}" for key, value in wrong.items()]
    (lines,) = refusals(*options, ways=["train.py"]).values()
    for line, (key, value) in zip(sorted(lines), sorted(wrong.items()), strict=True):
        assert line.startswith(f"config.{key} must be ") and line.endswith(f", not {value}.")
