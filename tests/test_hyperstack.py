import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import tifffile

from unet_jax.files import hyperstack
from unet_jax.files.hyperstack import Frame, read_frame, reserve, result_file
from unet_jax.files.images import read_image

PIXELS = np.arange(3 * 2 * 8 * 9, dtype=np.uint16).reshape(3, 2, 8, 9)


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **options)
    return read_frame(path, len(read_image(path)))


@pytest.mark.parametrize("unit", ["micron", r"\u00B5m"])
@pytest.mark.parametrize(
    ("axes", "pixels", "expected"),
    [
        ("YX", PIXELS[0, 0], ("", ())),
        ("ZYX", PIXELS[0], ("Z", (2,))),
        ("TYX", PIXELS[:, 0], ("T", (3,))),
        ("TZYX", PIXELS, ("TZ", (3, 2))),
        ("ZCYX", PIXELS, ("Z", (3,))),
        ("CYX", PIXELS[0], ("", ())),
        ("ZYXS", PIXELS.repeat(2, 1)[:, :3].transpose(0, 2, 3, 1).astype("u1"), ("Z", (3,))),
    ],
)
def test_frames_of_imagej_files(tmp_path, axes, pixels, expected, unit):
    metadata = {"axes": axes, "unit": unit, "spacing": 0.5, "finterval": 2.0}
    frame = write(tmp_path / "a.tif", pixels, imagej=True, resolution=(4, 5), metadata=metadata)
    channels = 2 if "C" in axes else 1  # colours are one
    assert frame == Frame(*expected, (0.25, 0.2), 0.5, 2.0, "um", channels)


def test_frames_of_ome_files(tmp_path):
    metadata = {"axes": "ZTYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.2, "PhysicalSizeZ": 3.0}
    metadata |= {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"} | {"TimeIncrement": 2.0}
    frame = write(tmp_path / "a.ome.tif", PIXELS, ome=True, metadata=metadata)
    assert frame == Frame("TZ", (2, 3), (0.25, 0.2), 3.0, 2.0, "um")


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        (("µm", "nm", "mm", "ms"), ((0.5, 5e-4), 3e3, 2e-3, "um")),
        (("nm", "nm", "nm", "min"), ((0.5, 0.5), 3, 120, "nm")),
        (("Å", "Å", "µm", "s"), ((0.5, 0.5), 3e4, 2, "Å")),
        (("µm", "pixel", "µm", "d"), (None, 3, None, "um")),
    ],
)
def test_ome_files_whose_axes_have_units_of_their_own(tmp_path, units, expected):
    metadata = {"axes": "TZYX", "TimeIncrement": 2.0, "TimeIncrementUnit": units[3]}
    for axis, size, unit in zip("XYZ", (0.5, 0.5, 3.0), units, strict=False):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    size, spacing, interval, unit = expected
    found = write(tmp_path / "a.ome.tif", PIXELS, ome=True, metadata=metadata)
    assert found.pixel_size == (size and pytest.approx(size)) and found.unit == unit
    assert found.spacing == pytest.approx(spacing)
    assert found.interval == (interval and pytest.approx(interval))


def test_imagej_files_whose_axes_have_units_of_their_own(tmp_path):
    metadata = {"axes": "TZYX", "unit": "micrometer", "yunit": "nm", "zunit": "mm"}
    metadata |= {"spacing": 0.5, "finterval": 2.0, "tunit": "min"}
    frame = write(tmp_path / "a.tif", PIXELS, imagej=True, resolution=(4, 5), metadata=metadata)
    assert frame == Frame("TZ", (3, 2), (0.25, 0.0002), 500, 120, "um")


@pytest.mark.parametrize(
    ("options", "size", "unit"),
    [
        (dict(resolution=(1000, 2000), resolutionunit="CENTIMETER"), (0.001, 0.0005), "cm"),
        (dict(resolution=(118.11, 118.11), resolutionunit="CENTIMETER"), None, "cm"),  # 300 dpi
        (dict(resolution=(50, 50), resolutionunit="INCH"), (0.02, 0.02), "inch"),
        (dict(resolution=(50, 50), resolutionunit="NONE"), None, ""),
        (dict(metadata=None), None, ""),
    ],
)
def test_frames_of_other_tiffs(tmp_path, options, size, unit):
    frame = write(tmp_path / "a.tif", PIXELS[0], photometric="minisblack", **options)
    assert frame.pixel_size == (size and pytest.approx(size))
    assert (frame.axes, frame.shape) == ("Z", (2,)) and frame.unit == unit


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_frames_of_images_that_are_turned(tmp_path, orientation):
    size = (0.001, 0.0005) if orientation > 4 else (0.0005, 0.001)
    options = dict(resolution=(2000, 1000), resolutionunit="CENTIMETER", photometric="minisblack")
    options["extratags"] = [(274, "H", 1, orientation, False)]
    frame = write(tmp_path / "a.tif", PIXELS[0], metadata=None, **options)
    assert frame == Frame("Z", (2,), size, None, None, "cm")


def test_frames_of_images_beside_their_thumbnails(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for step, options in ((2, {"subfiletype": 1}), (1, {}), (1, {})):
            writer.write(PIXELS[0, 0, ::step, ::step], resolution=(step, step), **options)
    assert read_frame(tmp_path / "a.tif", 2)[:3] == ("Z", (2,), (1, 1))


def test_what_is_said_of_the_pixel_size_need_not_make_sense(tmp_path, caplog):
    metadata = {"axes": "YX", "unit": "um", "spacing": -3}
    frame = write(
        tmp_path / "a.tif", PIXELS[0, 0], imagej=True, resolution=(4, 4), metadata=metadata
    )
    assert frame == Frame() and "a.tif: its pixel size cannot be read (found" in caplog.text


def test_png_has_no_frame(tmp_path):
    skimage.io.imsave(tmp_path / "a.png", PIXELS[0, 0].astype(np.uint8), check_contrast=False)
    assert read_frame(tmp_path / "a.png", 1) == Frame()


FRAMES = [
    Frame(),
    Frame("Z", (3,), (0.25, 0.2), 0.5, None, "um"),
    Frame("TZ", (3, 2), (0.25, 0.2), 0.5, 2.0, "um"),
    Frame("T", (3,), (1.5, 1.5), None, 2.0, "inch"),
    Frame("", (), (1.5, 1.5), None, None, "Å"),
]


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("channels", [(), ("membrane", "cell")])
@pytest.mark.parametrize("frame", FRAMES)
def test_results_have_the_frame_of_their_image(tmp_path, monkeypatch, frame, channels, is_large):
    """Read by tifffile and by scikit-image, in the formats of ImageJ and OME."""
    if is_large:
        monkeypatch.setattr(hyperstack, "_MAX_IMAGEJ_BYTES", 100)
    file = tmp_path / "a.tif"
    shape = (8, 9, 2) if channels else (8, 9)
    values = np.random.default_rng(0).random((*frame.shape, *shape)).astype(np.float32)
    with result_file(file, frame, (8, 9), np.float32, channels=channels) as pages:
        assert not file.exists()
        for page, value in zip(pages, values.reshape(-1, *shape), strict=True):
            assert page.shape == shape and not page.any()
            page[:] = value
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]

    found = read_frame(file, len(pages))
    assert found.axes == frame.axes and found.shape == frame.shape
    if frame.pixel_size:
        assert found.pixel_size == pytest.approx(frame.pixel_size)
        assert (found.interval, found.unit) == (frame.interval, frame.unit)
        assert found.spacing == frame.spacing or "Z" not in frame.axes
    else:
        assert found.pixel_size is None
    with tifffile.TiffFile(file) as tif:
        assert (tif.is_ome, tif.is_bigtiff, tif.is_imagej) == (is_large, is_large, not is_large)
        assert tif.series[0].axes == frame.axes + "C" * bool(channels) + "YX"
        stored = tif.series[0].asarray()
        described = tif.ome_metadata if is_large else str(tif.imagej_metadata)
    assert all(name in described for name in channels)
    if channels:
        stored = np.moveaxis(stored, -3, -1)
    np.testing.assert_array_equal(stored, values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sorted(skimage.io.imread(file).ravel()) == sorted(values.ravel())


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (1, 9)])
@pytest.mark.parametrize("frame", [Frame(), Frame("TZ", (3, 2))])
@pytest.mark.parametrize("channels", [(), ("membrane", "cell")])
def test_results_of_one_row_or_column(tmp_path, size, frame, channels):
    with result_file(tmp_path / "a.tif", frame, size, np.float32, channels=channels) as pages:
        for number, page in enumerate(pages):
            page[:] = number
    found = read_image(tmp_path / "a.tif")
    assert found.shape == (len(found), *size, max(len(channels), 1))
    assert found[:, 0, 0, 0].tolist() == [*range(math.prod(frame.shape))]


def test_colours_are_those_that_fiji_shows(tmp_path):
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 200, 9]], np.uint8)
    options = dict(largest=2, colours=colours)
    with result_file(tmp_path / "a.tif", Frame(), (8, 9), np.uint8, **options) as (page,):
        page[0, 0] = 2
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        metadata = tif.imagej_metadata
    assert (metadata["min"], metadata["max"]) == (0, 2)
    shown = np.array(metadata["LUTs"]).reshape(3, 256)[:, [0, 255 // 2, 255]]  # of 0, 1 and 2
    np.testing.assert_array_equal(shown.T, colours)


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("largest", [70_000, 2**24, 2**24 + 1, 2**32 - 1])
def test_whole_numbers_of_more_than_16_bits(tmp_path, monkeypatch, largest, is_large):
    """ImageJ's 32 bits are float32; what these do not hold is refused."""
    file = tmp_path / "a.tif"
    if is_large:
        monkeypatch.setattr(hyperstack, "_MAX_IMAGEJ_BYTES", 100)
    elif largest > 2**24:
        with (
            pytest.raises(
                ValueError, match=f"numbers up to {largest:,}, expected at most 16,777,2"
            ),
            result_file(file, Frame(), (8, 9), np.uint32, largest=largest),
        ):
            pass
        assert not list(tmp_path.iterdir())
        return
    with result_file(file, Frame(), (8, 9), np.uint32, largest=largest) as pages:
        pages[0][2, 3:6] = largest - 2, largest - 1, largest
    stored = read_image(file)[0, ..., 0]
    assert stored.dtype == (np.uint32 if is_large else np.float32)
    assert stored[2, 3:6].astype(int).tolist() == [largest - 2, largest - 1, largest]
    if not is_large:
        with tifffile.TiffFile(file) as tif:
            assert tif.imagej_metadata["max"] == largest


def test_no_array_lies_in_a_file_that_is_renamed(tmp_path, monkeypatch):
    """Windows would refuse it."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells what is mapped")
    original, seen = Path.replace, []

    def replace(unfinished, file):
        seen.append(str(unfinished) in maps.read_text())
        return original(unfinished, file)

    monkeypatch.setattr(Path, "replace", replace)
    with result_file(tmp_path / "a.tif", FRAMES[2], (8, 9), "u1", channels=("a", "b")) as pages:
        pages[0][:] = 1
        assert str(tmp_path) in maps.read_text()
    assert seen == [False] and pages == []


def test_a_result_that_fails_is_not_there(tmp_path):
    with pytest.raises(KeyError), result_file(tmp_path / "a.tif", Frame(), (8, 9), "u1"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_room_is_made_before_anything_is_written(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 3000)
    assert (tmp_path / "file").stat().st_size == 3000
    with (tmp_path / "file").open("wb") as file, pytest.raises(OSError):
        reserve(file, 2**62)
