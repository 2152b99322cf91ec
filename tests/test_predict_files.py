import json
import os
import re

import imagecodecs
import jax
import numpy as np
import pytest
import tifffile

from tests.test_checkpoint import a_description, a_state
from unet_jax import InputError, InstanceSettings, checkpoint, find_cells, load, predict_tiled
from unet_jax import predict_files as module
from unet_jax.data.image_files import read_image
from unet_jax.errors import RunFailed
from unet_jax.predict_files import KINDS, predict_files

DEFAULTS = dict(kinds=[*KINDS], step="best", averaging="none", overwrite=False)
RESULTS = [*(f"{kind}.tif" for kind in KINDS if kind != "overlay"), "overlay.png"]
RECORD = "predictions.jsonl"
RNG = np.random.default_rng(0)
IMAGES = {
    "a": RNG.integers(0, 255, (70, 50), np.uint8),
    "b": RNG.integers(0, 60_000, (30, 41), np.uint16),
    "c": RNG.normal(size=(2, 45, 45)).astype(np.float32),
}
SETTINGS = InstanceSettings(0.4, 5, 0.0, 3, 1.0)


@pytest.fixture
def workdir(tmp_path):
    """A network that was never trained, but gives both classes."""
    state = a_state()
    state.params["classes"]["kernel"] = jax.numpy.array([[[[5.0, -5.0], [-5.0, 5.0]]]])
    folder = tmp_path / "run"
    checkpoint.save(folder, state, a_description(3) | {"class_names": ["membrane", "cell"]})
    (folder / "instances.json").write_text(json.dumps(SETTINGS._asdict()))
    return folder


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, pixels in IMAGES.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="minisblack")
    return folder


@pytest.fixture
def predict(workdir, images, tmp_path):
    def predict(pattern=images, **options):
        options = DEFAULTS | {"output": tmp_path / "out"} | options
        return predict_files(workdir, images=str(pattern), **options)

    return predict


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_results_are_those_of_predict_tiled(predict, workdir, tmp_path, capsys):
    assert predict() == 0
    assert "results of 3 of 3 image file(s), 0 there before" in capsys.readouterr().out
    model, out = load(workdir), tmp_path / "out"
    seen = set()
    for name, image in IMAGES.items():
        pages = image.reshape(-1, *image.shape[-2:])
        expected = np.stack([predict_tiled(model, page) for page in pages])
        found = {kind: read_image(out / f"{name}_{kind}.tif") for kind in KINDS if kind[0] != "o"}
        np.testing.assert_array_equal(found["probabilities"], expected)
        np.testing.assert_array_equal(found["classes"][..., 0], expected.argmax(-1))
        np.testing.assert_array_equal(found["challenge"][..., 0], 1 - expected[..., 0])
        cells = [find_cells(1 - page[..., 0], SETTINGS) for page in expected]
        np.testing.assert_array_equal(found["cells"][..., 0], cells)
        dtypes = {kind: pixels.dtype for kind, pixels in found.items()}
        assert dtypes == dict(probabilities="f4", classes="u1", cells="u2", challenge="f4")
        seen |= set(np.unique(found["classes"]))
        overlays = [f"{name}_overlay_{page:04d}" for page in range(len(pages))]
        for overlay in overlays if len(pages) > 1 else [f"{name}_overlay"]:
            assert imagecodecs.imread(out / f"{overlay}.png").shape == (*pages.shape[1:], 3)
    assert seen == {0, 1}
    assert len(list(out.iterdir())) == 3 * 5 + 1 + 1


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_wanted_is_written(predict, images, tmp_path, kind):
    predict(images / "a.tif", kinds=[kind])
    suffix = "png" if kind == "overlay" else "tif"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"a_{kind}.{suffix}", RECORD}
    before = contents(tmp_path / "out")
    predict(images / "a.tif")
    after = contents(tmp_path / "out")
    assert after.keys() == {RECORD, *(f"a_{result}" for result in RESULTS)}
    if kind != "overlay":  # which shows the cells now
        name = f"a_{kind}.{suffix}"
        assert re.sub(rb"DateTime.*", b"", after[name][0]) == before[name][0]


def test_patterns_files_and_folders(predict, images, tmp_path):
    (images / ".hidden.tif").write_bytes(b"")
    (images / "notes.txt").write_text("")
    for pattern, names in [
        ("*.tif", "abc"),
        ("[ab].*", "ab"),
        ("c.tif", "c"),
        ("../**/b.tif", "b"),
    ]:
        out = tmp_path / f"out {names} {len(pattern)}"
        predict(images / pattern, kinds=["classes"], output=out)
        assert {path.name[0] for path in out.glob("*.tif")} == set(names)


def test_what_is_finished_is_skipped(predict, tmp_path, monkeypatch, capsys):
    predict()
    before = contents(tmp_path / "out")
    monkeypatch.setattr(module, "predict_tiled", lambda *_, **__: pytest.fail("again"))
    assert predict() == predict(kinds=["cells"]) == 0
    assert "results of 3 of 3 image file(s), 3 there before" in capsys.readouterr().out
    after = contents(tmp_path / "out")
    assert after.pop(RECORD)[0] == before.pop(RECORD)[0] and after == before


def test_what_fails_is_told_at_the_end_and_the_rest_goes_on(predict, images, tmp_path):
    (images / "a.tif").write_bytes(b"")
    spoilt = IMAGES["c"].copy()
    spoilt[1, 3, 4] = 1e20
    tifffile.imwrite(images / "c.tif", spoilt, photometric="minisblack")
    tifffile.imwrite(images / "d.tif", np.zeros((9, 9, 3), np.uint8) + np.arange(3, dtype="u1"))
    with pytest.raises(RunFailed) as end:
        predict()
    empty, far, coloured = end.value.args
    assert empty == f"{images / 'a.tif'}: is empty, expected a TIFF or PNG image"
    assert far.startswith(f"{images / 'c.tif'}: page 1: The image holds a pixel of 1e+20")
    assert coloured == f"{images / 'd.tif'}: has 3 channel(s), expected 1 as in training"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {RECORD, "c_overlay_0000.png", *(f"b_{result}" for result in RESULTS)}
    # Mended, they are predicted, and no other.
    for name in "ac":
        tifffile.imwrite(images / f"{name}.tif", IMAGES[name], photometric="minisblack")
    (images / "d.tif").unlink()
    before = contents(tmp_path / "out")
    assert predict() == 0
    after = contents(tmp_path / "out")
    assert all(after[name] == before[name] for name in after if name[0] == "b")


def test_an_image_that_has_changed_is_not_replaced_unasked(predict, images, tmp_path):
    predict()
    tifffile.imwrite(images / "a.tif", IMAGES["a"][::-1].copy())
    os.utime(images / "a.tif", (0, 0))
    with pytest.raises(RunFailed, match="a.tif: has changed since it was predicted; --overwrite"):
        predict()
    assert predict(overwrite=True) == predict() == 0
    found = read_image(tmp_path / "out" / "a_classes.tif")
    assert found.any()


def test_results_of_another_network_are_not_mixed(predict, workdir, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="holds results with averaging = none, not rotations"):
        predict(averaging="rotations")
    checkpoint.save(workdir, a_state(7), a_description(4) | {"class_names": ["membrane", "cell"]})
    with pytest.raises(InputError, match="holds results with step = 3, not 4; give another"):
        predict()
    assert contents(tmp_path / "out") == before
    assert predict(overwrite=True) == 0
    assert contents(tmp_path / "out")["a_challenge.tif"][0] != before["a_challenge.tif"][0]


def test_files_that_are_there_are_not_replaced_unasked(predict, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b_cells.tif").write_text("my own")
    with pytest.raises(InputError, match="b_cells.tif: is there already; --overwrite replaces it"):
        predict()
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["my own"]


def test_input_that_cannot_be_used(predict, images, tmp_path):
    for pattern in ("none", "*.jpg"):
        with pytest.raises(InputError, match="no image there, expected a file .* in quotes like"):
            predict(images / pattern)
    with pytest.raises(InputError, match="images: holds the images; give another --output"):
        predict(output=images)
    imagecodecs.imwrite(images / "a.png", IMAGES["a"])
    with pytest.raises(InputError, match=r"a.tif: \S+a.png has the same name, expected one"):
        predict()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written to"):
        predict(images / "b.tif", output=tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_record_cut_off_by_a_kill(predict, tmp_path, capsys):
    predict()
    record = tmp_path / "out" / RECORD
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines)[:-9])
    predict()
    assert ", 2 there before" in capsys.readouterr().out
    assert [json.loads(line) for line in record.read_text().splitlines()] == list(
        map(json.loads, lines)
    )
    record.write_text(lines[0] + "{\n" + lines[1])
    with pytest.raises(InputError, match="predictions.jsonl: is damaged; give another --output"):
        predict()


def test_too_large_for_single_cells(predict, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "host_memory_bytes", lambda: 2 * 64 * 3000)
    for _ in range(2):  # it is told again where it is skipped
        with pytest.raises(RunFailed) as end:
            predict()
        (line,) = end.value.args
        assert f"{images / 'a.tif'}: has 3,500 pixels a page, too many to find single cells" in line
        assert line.endswith("expected at most 3,000; the rest is written")
    names = {path.name for path in (tmp_path / "out").glob("a_*")}
    assert names == {f"a_{result}" for result in RESULTS} - {"a_cells.tif"}


def test_another_scale_is_not_predicted_in_pieces(predict, workdir, images, monkeypatch):
    description = a_description(9) | {"scale": 0.5, "class_names": ["membrane", "cell"]}
    checkpoint.save(workdir, a_state(), description)
    assert predict(images / "b.tif", step="9") == 0
    monkeypatch.setattr(module, "device_memory_bytes", lambda: 2 * 32 * 3000)
    with pytest.raises(RunFailed, match="expected at most 3,000 for a network of scale 0.5"):
        predict(images / "a.tif", step="9")


def test_large_images_are_neither_read_nor_written_as_a_whole(predict, images, monkeypatch):
    big = tifffile.memmap(images / "big.tif", shape=(300, 400), dtype=">u2", imagej=True)
    big[:] = RNG.integers(0, 999, big.shape)
    big.flush()
    mapped = []
    original = module.predict_tiled

    def recorded(model, image, *, averaging, out):
        def lies_in_a_file(array):
            while array is not None and not isinstance(array, np.memmap):
                array = array.base
            return array is not None

        mapped.append((lies_in_a_file(image), lies_in_a_file(out)))
        return original(model, image, averaging=averaging, out=out)

    monkeypatch.setattr(module, "predict_tiled", recorded)
    for kinds in (["classes"], ["probabilities"]):
        predict(images / "big.tif", kinds=kinds)
    assert mapped == [(True, True)] * 2


def test_a_full_disk_is_one_line(predict, monkeypatch, tmp_path):
    def reserve(file, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "reserve", reserve)
    with pytest.raises(RunFailed) as end:
        predict(kinds=["classes"])
    assert [line.split(": ", 1)[1] for line in end.value.args] == [
        "[Errno 28] No space left on device"
    ] * 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD]


def test_output_that_is_not_finite_is_told(predict, workdir, images, monkeypatch):
    def broken(model, image, *, averaging, out):
        out[:] = np.nan

    monkeypatch.setattr(module, "predict_tiled", broken)
    with pytest.raises(RunFailed, match="a.tif: page 0: the network's output is not finite; use"):
        predict(images / "a.tif")
