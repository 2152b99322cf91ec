import os
import shutil

import numpy as np
import pytest
import tifffile

from tests.test_ome_zarr import RNG, make_source, multiscale, problem, write_array, write_group
from unet_jax import load, unread
from unet_jax.data.folder import read_folder, read_images
from unet_jax.files import zarr_image
from unet_jax.files.hyperstack import Frame, read_frame
from unet_jax.files.images import read_image, read_mask
from unet_jax.files.names import page_names
from unet_jax.run.fit import fit


def save(folder, pixels, names="yx", version="0.5"):
    write_group(folder, version, multiscale(names))
    write_array(folder / "0", version, pixels, [min(n, 32) for n in pixels.shape])


@pytest.mark.parametrize("version", ["0.4", "0.5", "sharded"])
@pytest.mark.parametrize("names", ["tczyx", "yx", "zyx", "czyx", "tyx", "zcxy", "yxc"])
def test_pages_are_in_the_order_of_time_and_depth(tmp_path, version, names):
    pixels = make_source(tmp_path / "a.ome.zarr", version, names)
    order = [names.index(name) for name in "tzyxc" if name in names]
    expected = pixels.transpose(order).reshape(-1, 11, 13, 3 if "c" in names else 1)
    found = read_image(tmp_path / "a.ome.zarr")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    read_names, pages = zip(*read_images(tmp_path, channels=expected.shape[-1]), strict=True)
    assert [*read_names] == page_names("a", len(expected))
    np.testing.assert_array_equal(np.reshape(pages, expected.shape), expected)


def test_a_mask_of_yes_and_no_has_numbers(tmp_path):
    pixels = make_source(tmp_path / "a.zarr", names="yx", dtype="bool")
    assert read_mask(tmp_path / "a.zarr").dtype == np.uint8
    np.testing.assert_array_equal(read_mask(tmp_path / "a.zarr")[0, ..., 0], pixels)


@pytest.mark.parametrize(
    ("names", "units", "expected"),
    [
        ("tczyx", {}, Frame("TZ", (2, 4), (4.5, 3.5), 2.5, 0.5, "um", 3)),
        ("zyx", {"z": "nanometer"}, Frame("Z", (4,), (2.5, 1.5), 0.0005, None, "um")),
        ("zyx", {"z": "parsec"}, Frame("Z", (4,), (2.5, 1.5), None, None, "um")),
        ("tyx", {"t": "minute", "x": None}, Frame("T", (2,), None, None, 30.0, "")),
        ("xy", {"x": "parsec", "y": "parsec"}, Frame("", (), (0.5, 1.5), None, None, "parsec")),
        ("yx", {"y": None}, Frame("", (), None, None, None, "um")),
        ("tyx", {"t": "fortnight"}, Frame("T", (2,), (2.5, 1.5), None, None, "um")),
    ],
)
def test_frames_of_zarr(tmp_path, names, units, expected):
    pixels = make_source(tmp_path / "a.zarr", names=names)
    described = multiscale(names)
    for axis in described["axes"]:
        axis |= {"unit": units[axis["name"]]} if axis["name"] in units else {}
    write_group(tmp_path / "a.zarr", "0.5", described)
    assert read_frame(tmp_path / "a.zarr", pixels.size // 143) == expected


def test_a_folder_of_zarr_trains(tiny_config, tmp_path):
    for number in range(4):
        image = RNG.integers(0, 255, (60, 60), np.uint8)
        if number:
            save(tmp_path / f"images/{number}.ome.zarr", image, version="0.4")
        else:
            (tmp_path / "images").mkdir()
            tifffile.imwrite(tmp_path / "images/0.tif", image)
        save(tmp_path / f"masks/{number}.zarr", image.astype(np.int64) // 64)
    tiny_config.data = {
        "source": "folder",
        "images": str(tmp_path / "images"),
        "labels": str(tmp_path / "masks"),
        "mask_rule": "instances",
        "validation_fraction": 0.25,
        "test_fraction": 0.25,
    }
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    assert fit(tiny_config, tmp_path / "run").status == 0
    splits = load(tmp_path / "run").record.training.splits
    assert sorted(name for names in splits.values() for name in names) == ["0", "1", "2", "3"]


def test_missing_chunks_are_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(unread, "cpu_cores", lambda: 1)  # several tell in the order they come to it
    for folder in ("images", "masks"):
        for name in "ab":
            save(tmp_path / folder / f"{name}.zarr", np.ones((40, 70), np.uint8))
            shutil.rmtree(tmp_path / folder / f"{name}.zarr/0/c/1")
    read_folder(
        tmp_path / "images", tmp_path / "masks", mask_rule="binary", classes=2, ignore_value=-1
    )
    assert caplog.messages == [
        f"{tmp_path}/images/{name}.zarr: 3 chunk(s) are missing and read as the fill value: "
        "1/0, 1/1, 1/2"
        for name in "ab"
    ] + [f"{tmp_path}/masks: some masks lack chunks, which are read as the fill value"]


def test_what_is_too_large_is_told_what_to_do(tmp_path, monkeypatch):
    make_source(tmp_path / "a.zarr", names="zyx")
    size = 4 * 11 * 13 * 2
    monkeypatch.setattr(zarr_image, "MAX_BYTES", size - 1)
    assert problem(read_image, tmp_path / "a.zarr") == (
        f"{tmp_path}/a.zarr: has {size:,} bytes of pixels in 36 chunks, expected at most "
        f"{size - 1:,} bytes in 4,194,304 chunks; predict.py --output=NAME.ome.zarr segments it "
        "block by block"
    )
    monkeypatch.setattr(zarr_image, "MAX_BYTES", size)
    monkeypatch.setattr(zarr_image, "_MAX_CHUNKS", 36)
    assert len(read_image(tmp_path / "a.zarr")) == 4
    monkeypatch.setattr(zarr_image, "_MAX_CHUNKS", 35)
    assert "in 36 chunks, expected at most" in problem(read_image, tmp_path / "a.zarr")


def test_bad_directories_are_refused_by_name(tmp_path):
    bad = tmp_path / "images/a.zarr"
    bad.mkdir(parents=True)
    assert problem(read_images, bad.parent, 1).startswith(f"{bad}: is not an OME-Zarr image")
    assert "a.zarr: is not an OME-Zarr image" in problem(read_image, bad)
    assert "is a file, expected the folder that contains it" in problem(
        read_folder, bad, bad, mask_rule="binary", classes=2, ignore_value=-1
    )
    save(bad, np.ones((40, 70), np.uint8))
    assert [name for name, _ in read_images(bad, 1)] == ["a"]
    (bad / "0/c/0/1").write_bytes(b"damaged")
    assert problem(read_image, bad).startswith(f"{bad}: cannot be read (")
    (bad / "0/c/0/1").unlink()
    os.mkfifo(bad / "0/c/0/1")
    assert problem(read_image, bad) == f"{bad}/0/c/0/1: is not a regular file"
    save(bad.parent / "c.zarr", np.full((40, 70), np.nan))
    assert "c.zarr: page 0 holds NaN" in problem(read_image, bad.parent / "c.zarr")
    (bad.parent / "b.zarr").write_bytes(b"PK")
    assert "b.zarr: begins with b'PK', expected a TIFF or PNG" in problem(
        read_image, bad.parent / "b.zarr"
    )


@pytest.mark.parametrize("other", ["a.tif", "a.zarr", "a.png"])
def test_files_that_differ_in_their_suffix_are_refused(tmp_path, other):
    save(tmp_path / "a.ome.zarr", np.ones((40, 70), np.uint8))
    if other == "a.zarr":
        save(tmp_path / other, np.ones((40, 70), np.uint8))
    else:
        tifffile.imwrite(tmp_path / other, np.ones((40, 70), np.uint8))
    assert "has the same name, expected only one of them" in problem(read_images, tmp_path, 1)
