import contextlib
import csv
import json
import os
import shlex
import shutil
import unicodedata

import imagecodecs
import jax
import numpy as np
import pytest
import tifffile

from tests.test_checkpoint import FIELDS, a_record, a_state, a_training
from tests.test_command_line import call
from tests.test_ome_zarr import multiscale, write_array, write_group
from unet_jax import (
    InputError,
    InstanceSettings,
    checkpoint,
    find_cells,
    load,
    predict_tiled,
    predict_with_uncertainty,
)
from unet_jax.checked_settings import as_dict
from unet_jax.data.folder import read_folder
from unet_jax.files import cell_table, geojson, hyperstack, rois
from unet_jax.files.hyperstack import Frame, read_frame
from unet_jax.files.images import read_image
from unet_jax.network import UNet
from unet_jax.prediction import predict_files as module
from unet_jax.prediction import ranking, results
from unet_jax.prediction.predict_files import Predictions, predict_files
from unet_jax.prediction.results import KINDS as ALL_KINDS
from unet_jax.prediction.results import existing_files

KINDS = tuple(kind for kind in ALL_KINDS if kind != "uncertainty")  # which takes several views
OTHER_FILES = {
    "overlay": "overlay.png",
    "table": "table.csv",
    "rois": "rois.zip",
    "geojson": "cells.geojson",
}
RESULTS = {kind: OTHER_FILES.get(kind, f"{kind}.tif") for kind in KINDS}
RECORD, TABLE = "predictions.jsonl", "table.csv"
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
    checkpoint.save(folder, state, a_record(3, training=a_training(UNet(**FIELDS))))
    (folder / "instances.json").write_text(json.dumps(as_dict(SETTINGS)))
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
        options = {"kinds": KINDS, "output": tmp_path / "out"} | options
        return predict_files(workdir, images=pattern, **options)

    return predict


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def rows(folder):
    """The last line of the record for each image, by its name."""
    _, *lines = map(json.loads, (folder / RECORD).read_text().splitlines())
    return {row["name"]: row for row in lines}


def test_results_are_those_of_predict_tiled(predict, workdir, tmp_path, capsys):
    model, out = load(workdir), tmp_path / "out"
    assert predict() == Predictions(out, files=3, done=3, skipped=0, problems=())
    assert capsys.readouterr().out == ""
    seen = set()
    for name, image in IMAGES.items():
        pages = image.reshape(-1, *image.shape[-2:])
        expected = np.stack([predict_tiled(model, page) for page in pages])
        found = {
            kind: read_image(out / f"{name}_{kind}.tif")
            for kind in KINDS
            if kind not in OTHER_FILES
        }
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
    assert len(list(out.iterdir())) == 3 * len(KINDS) + 1 + 2


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_wanted_is_written(predict, images, tmp_path, kind):
    predict(images / "a.tif", kinds=[kind])
    file = f"a_{RESULTS[kind]}"
    joined = {TABLE} if kind == "table" else set()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {file, RECORD} | joined
    before = contents(tmp_path / "out")
    predict(images / "a.tif")
    after = contents(tmp_path / "out")
    assert after.keys() == {RECORD, TABLE, *(f"a_{result}" for result in RESULTS.values())}
    assert after[file] == before[file]
    assert {*rows(tmp_path / "out")["a"]["kinds"]} == {*KINDS}


def test_patterns_files_and_folders(predict, images, tmp_path):
    (images / ".hidden.tif").write_bytes(b"")
    (images / "notes.txt").write_text("")
    for folder in ("[plate", "plate [1]", "*"):
        (images / folder).mkdir()
        tifffile.imwrite(images / folder / "D.TIFF", IMAGES["a"])
    for pattern, names in [
        ("*.tif", "abc"),
        ("[ab].*", "ab"),
        ("c.tif", "c"),
        ("../**/b.tif", "b"),
        ("", "abc"),
        ("plate [1]/*.TIFF", "D"),
        ("plate [1]", "D"),
        ("[[]plate/D.TIFF", "D"),
        ("[plate/[D-F].*", "D"),
        ("*/*", "D"),
    ]:
        out = tmp_path / f"out {names} {len(pattern)}"
        predict(images / pattern, kinds=["classes"], output=out)
        assert {path.name[0] for path in out.glob("*.tif")} == set(names)


def test_what_is_finished_is_skipped(predict, tmp_path, monkeypatch):
    predict()
    before = contents(tmp_path / "out")
    monkeypatch.setattr(module, "predict_tiled", lambda *_, **__: pytest.fail("again"))
    out = tmp_path / "out"
    all_there = Predictions(out, files=3, done=3, skipped=3, problems=())
    assert predict() == predict(kinds=["cells"]) == all_there
    assert str(all_there) == f"{out}: results for 3 of 3 image file(s); 3 had them already."
    after = contents(tmp_path / "out")
    for name in (RECORD, TABLE):  # the same, but written again
        assert after.pop(name)[0] == before.pop(name)[0]
    assert after == before


def test_what_fails_is_told_at_the_end_and_the_rest_goes_on(predict, images, tmp_path):
    (images / "a.tif").write_bytes(b"")
    spoilt = IMAGES["c"].copy()
    spoilt[1, 3, 4] = 1e20
    tifffile.imwrite(images / "c.tif", spoilt, photometric="minisblack")
    tifffile.imwrite(images / "d.tif", np.zeros((9, 9, 3), np.uint8) + np.arange(3, dtype="u1"))
    predictions = predict()
    empty, far, coloured = predictions.problems
    assert (predictions.files, predictions.done, predictions.skipped) == (4, 1, 0)
    assert empty == f"{images / 'a.tif'}: is empty, expected a TIFF or PNG image"
    assert far.startswith(f"{images / 'c.tif'}: page 1: The image holds a pixel of 1e+20")
    assert coloured == f"{images / 'd.tif'}: has 3 channel(s), expected 1 as in training"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    of_b = {f"b_{result}" for result in RESULTS.values()}
    assert names == {RECORD, TABLE, "c_overlay_0000.png"} | of_b
    # Mended, they are predicted, and no other.
    for name in "ac":
        tifffile.imwrite(images / f"{name}.tif", IMAGES[name], photometric="minisblack")
    (images / "d.tif").unlink()
    before = contents(tmp_path / "out")
    assert not predict().problems
    after = contents(tmp_path / "out")
    assert all(after[name] == before[name] for name in after if name[0] == "b")


DECOMPOSED = unicodedata.normalize("NFD", "\u00e4.tif")


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("A01.tif", "A01.tif"),
        ("A01.tif", "A01.ome.tif"),
        ("A01.tif", "a01.TIF"),
        ("A01.tif", "A01.png"),
        ("\u00e4.tif", DECOMPOSED),
    ],
)
def test_another_image_of_the_same_name_replaces_nothing(
    predict, tmp_path, monkeypatch, name, other
):
    first, second = tmp_path / "plate1", tmp_path / "plate2"
    for folder, file, image in ((first, name, "a"), (second, other, "b")):
        folder.mkdir()
        (imagecodecs if "png" in file else tifffile).imwrite(folder / file, IMAGES[image])
        tifffile.imwrite(folder / f"{image}.tif", IMAGES[image])
        os.utime(folder / file, (0, 0))
    predict(first)
    before = contents(tmp_path / "out")
    assert predict(second, kinds=["classes"]).problems == (
        f"{second / other}: {tmp_path / 'out'} holds the results of another image with this name; "
        "give another --output, or use --overwrite.",
    )
    after = contents(tmp_path / "out")
    assert after.keys() == before.keys() | {"b_classes.tif"}
    assert all(after[name] == before[name] for name in before if name != RECORD)
    # The same pixels elsewhere, or touched, are the same image.
    (second / other).unlink()
    (second / name).write_bytes((first / name).read_bytes())
    monkeypatch.setattr(module, "predict_tiled", lambda *_, **__: pytest.fail("again"))
    assert not predict(second, kinds=["classes"]).problems
    monkeypatch.undo()
    # Asked to, it replaces this one, and still knows the others.
    (second / name).unlink()
    (imagecodecs if "png" in other else tifffile).imwrite(second / other, IMAGES["b"])
    assert not predict(second / other, overwrite=True).problems
    monkeypatch.setattr(module, "predict_tiled", lambda *_, **__: pytest.fail("again"))
    assert not predict(second, kinds=["classes"]).problems
    assert not predict(first / "a.tif").problems


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("a.png", "a.tif"),
        ("A01.ome.tif", "A01.tif"),
        ("A01.tif", "a01.tif"),
        (DECOMPOSED, "\u00e4.tif"),
    ],
)
def test_images_of_one_call_have_different_names(predict, images, tmp_path, name, other):
    for file in (name, other):
        (images / file).write_bytes(b"")
    with pytest.raises(InputError) as end:
        predict()
    (line,) = end.value.args
    assert line.startswith(
        f"{images / other}: its results would have the same names as those of {images / name}; "
        "rename one, or"
    )
    assert not (tmp_path / "out").exists()


def test_the_record_of_an_earlier_version_is_not_trusted(predict, images, tmp_path):
    predict(images / "a.tif")
    record = tmp_path / "out" / RECORD
    header, row = map(json.loads, record.read_text().splitlines())
    del header["images"], row["sha256"]
    row["state"] = [3756, 1]
    record.write_text(f"{json.dumps(header)}\n{json.dumps(row)}\n")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="out: holds results of an earlier version, which did not"):
        predict(images / "a.tif")
    assert contents(tmp_path / "out") == before
    assert not predict(images / "a.tif", overwrite=True).problems
    assert predict(images / "a.tif").skipped == 1


def test_results_of_another_network_are_not_mixed(predict, workdir, images, tmp_path):
    predict()
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="holds results with averaging = none, not rotations"):
        predict(averaging="rotations")
    checkpoint.save(workdir, a_state(7), a_record(4))
    with pytest.raises(InputError, match="holds results with step = 3, not 4; give another"):
        predict()
    assert contents(tmp_path / "out") == before
    assert not predict(images / "a.tif", overwrite=True).problems
    assert contents(tmp_path / "out")["a_challenge.tif"][0] != before["a_challenge.tif"][0]
    # Those of the former network are still there, and not known any more.
    with pytest.raises(InputError, match="b_cells.geojson: exists already; use --overwrite"):
        predict()
    assert not predict(overwrite=True).problems


@pytest.mark.parametrize("name", ["b_cells.tif", "B_challenge.TIF", "c_overlay_0001.png"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_files_that_are_there_are_not_replaced_unasked(predict, images, tmp_path, name, is_begun):
    (tmp_path / "out").mkdir()
    if is_begun:
        predict(images / "a.tif")
    (tmp_path / "out" / name).write_text("my own")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=f"{name}: exists already; use --overwrite to replace it"):
        predict()
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (
            "none",
            "{}: there is nothing with this name; {parent} holds a.tif, b.tif, c.tif, ...;",
        ),
        ("*.tiff", "{}: there is nothing with this name; {parent} holds a.tif, b.tif, c.tif, ...;"),
        (
            "no/where/*.tif",
            "{}: there is nothing with this name; {images} holds a.tif, b.tif, c.tif,",
        ),
        (
            "x.jpg",
            "{}: is not a TIFF or PNG, judging by its name, expected .tif, .tiff, .png, .zarr",
        ),
        (
            "*.jpg",
            "{}: holds x.jpg, but no TIFF or PNG, expected .tif, .tiff, .png, .zarr; in Fiji:",
        ),
        ("others", "{}: holds 1.czi, 2.czi, 3.JPG, ..., but no TIFF or PNG, expected .tif"),
        (
            "pl*",
            "{}: holds no image itself, but its subfolder(s) plate [1] do; to predict these, give",
        ),
        (
            "mixed",
            "{}: holds no image itself, but its subfolder(s) plate do; to predict these, give",
        ),
        ("empty", "{}: is an empty folder, expected .tif, .tiff, .png, .zarr"),
        ("empty/*.tif", "{}: there is nothing with this name; {parent} holds nothing; expected"),
    ],
)
def test_images_that_are_not_there_or_none(predict, images, tmp_path, pattern, line):
    for folder in ("empty", "others", "plate [1]", "mixed/plate"):
        (images / folder).mkdir(parents=True)
    inside = "others/1.czi", "others/2.czi", "others/3.JPG", "others/4.bmp", "plate [1]/p.tif"
    for name in ("x.jpg", *inside, "mixed/Thumbs.db", "mixed/plate/p.tif"):
        (images / name).touch()
    with pytest.raises(InputError) as end:
        predict(images / pattern)
    (found,) = end.value.args
    parent = (images / pattern).parent
    if found.endswith("*'"):  # a command that a shell takes
        (command,) = shlex.split(found.split(" give ")[1])
        inner = "*/*" if (images / pattern).is_dir() else "*"
        assert command == f"--images={images / pattern}/{inner}"
    else:
        assert found.startswith(line.format(images / pattern, parent=parent, images=images))
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_named(predict, images, caplog):
    for name in ("x.jpg", "y.czi", ".hidden.jpg"):
        (images / name).touch()
    (images / "folder").mkdir()
    (images / "gone.tif").symlink_to(images / "nowhere")
    predict(kinds=["classes"])
    assert [record.getMessage() for record in caplog.records] == [
        f"{images}: 3 file(s) are left out, because only .tif, .tiff, .png, .zarr are read: "
        "gone.tif, x.jpg, y.czi"
    ]


def test_input_that_cannot_be_used(predict, images, tmp_path):
    with pytest.raises(InputError, match="images: holds the images; give another --output"):
        predict(output=images)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written to"):
        predict(images / "b.tif", output=tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_unknown_words_are_refused_before_anything_is_written(predict, tmp_path):
    for wrong in (dict(kinds=["cell"]), dict(kinds="cells"), dict(averaging="rotation")):
        with pytest.raises(InputError, match=f"{[*wrong][0]}: expected .*, not '"):
            predict(**wrong)
    assert not (tmp_path / "out").exists()


def test_the_program_and_its_defaults(workdir, images, tmp_path):
    """They are those of the function; what is missing comes after what was done."""
    (images / "a.tif").write_bytes(b"")
    program, function = tmp_path / "program", tmp_path / "function"
    done = call(
        "predict.py", f"--checkpoint={workdir}", f"--images={images}", f"--output={program}"
    )
    assert done.returncode == 1
    assert done.stdout == f"{program}: results for 2 of 3 image file(s); 0 had them already.\n"
    predictions = predict_files(str(workdir), images=str(images), output=str(function))
    (problem,) = predictions.problems
    assert done.stderr.splitlines()[-1] == f"predict.py: {problem}"
    assert {name: written for name, (written, _) in contents(program).items()} == {
        name: written for name, (written, _) in contents(function).items()
    }
    assert {*rows(function)["b"]["kinds"]} == {"probabilities", "classes", "cells", "overlay"}


def test_record_cut_off_by_a_kill(predict, tmp_path):
    predict()
    record = tmp_path / "out" / RECORD
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines)[:-9])
    assert predict().skipped == 2
    assert [json.loads(line) for line in record.read_text().splitlines()] == list(
        map(json.loads, lines)
    )
    # By a full disk, so that the next line follows the incomplete one.
    record.write_text(lines[0] + lines[1][:9] + lines[2] + lines[3])
    assert predict().skipped == 1
    assert sorted(record.read_text().splitlines(keepends=True)[1:]) == sorted(lines[1:])
    record.write_text("")
    with pytest.raises(InputError, match="predictions.jsonl: is damaged; give another --out"):
        predict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_was_deleted_is_written_again(predict, tmp_path, kind):
    predict()
    before = contents(tmp_path / "out")
    for file in existing_files(tmp_path / "out", "c", kind):
        file.unlink()
    assert contents(tmp_path / "out").keys() < before.keys()
    assert predict().skipped == 2
    after = contents(tmp_path / "out")
    assert {name: after[name][0] for name in after if name != RECORD} == {
        name: before[name][0] for name in before if name != RECORD
    }


def test_nothing_of_a_replaced_image_stays(predict, images, tmp_path):
    predict(rank=True, averaging="symmetries")
    out = tmp_path / "out"
    tifffile.imwrite(images / "c.tif", IMAGES["a"], photometric="minisblack")
    predict(images / "c.tif", kinds=["cells"], averaging="symmetries", overwrite=True)
    assert [file.name for file in sorted(out.glob("c_*"))] == ["c_cells.tif"]
    assert not (out / "rank.csv").exists() and not (out / "rank.html").exists()
    with (out / "table.csv").open() as opened:
        assert {row["image"] for row in csv.DictReader(opened)} == {"a.tif", "b.tif"}


def test_the_joint_table_holds_the_images_of_earlier_calls(predict, images, tmp_path):
    predict(images / "a.tif", kinds=["table"])
    predict(images / "b.tif", kinds=["table"])
    one_by_one = (tmp_path / "out" / "table.csv").read_bytes()
    predict(images / "[ab].tif", kinds=["table"], output=tmp_path / "at_once")
    assert one_by_one == (tmp_path / "at_once" / "table.csv").read_bytes()
    (tmp_path / "out" / "a_table.csv").write_text("")
    (problem,) = predict(images / "b.tif", kinds=["table"]).problems
    assert problem.endswith("written: a_table.csv was not written by this program")


def test_too_large_for_single_cells(predict, images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "host_memory_bytes", lambda: 2 * 64 * 3000)
    for _ in range(2):  # it is told again, and nothing is predicted for it
        (line,) = predict().problems
        assert (
            f"{images / 'a.tif'}: has 3,500 pixels per page, too many to find single cells" in line
        )
        assert line.endswith("expected at most 3,000; the other results are written")
        monkeypatch.setattr(module, "predict_tiled", lambda *_, **__: pytest.fail("again"))
    names = {path.name for path in (tmp_path / "out").glob("a_*")}
    assert names == {f"a_{RESULTS[kind]}" for kind in KINDS if kind not in results.CELL_KINDS}


@pytest.mark.parametrize("moment", ["at its start", "at its end"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_result_that_fails_is_missing_alone(predict, tmp_path, monkeypatch, kind, moment):
    """The error may be any; the next run writes what is missing, and nothing else."""
    module, original = {
        "overlay": (results, results.complete),
        "table": (cell_table, cell_table.complete_text),
        "rois": (rois, rois.complete),
        "geojson": (geojson, geojson.complete_text),
    }.get(kind, (results, results.result_file))
    ending = "_" + RESULTS[kind].split(".")[0]

    @contextlib.contextmanager
    def failing(file, *args, **options):
        if ending in file.name and moment == "at its start":
            raise RuntimeError("broken")
        with original(file, *args, **options) as opened:
            yield opened
            if ending in file.name:
                raise RuntimeError("broken")

    monkeypatch.setattr(module, original.__name__, failing)
    problems = predict().problems
    line = "{}: its {} cannot be written: broken"
    files = [tmp_path / "images" / f"{name}.tif" for name in IMAGES]
    assert problems == tuple(line.format(file, kind) for file in files)
    out = tmp_path / "out"
    before = contents(out)
    # A file for each page of the overlay, and without any table there is none of all images.
    fewer = len(IMAGES) + (kind in ("overlay", "table"))
    assert len(before) == 2 + len(IMAGES) * len(KINDS) + 1 - fewer
    for name in IMAGES:
        assert rows(out)[name]["kinds"] == [k for k in KINDS if k != kind]
    monkeypatch.undo()
    assert not predict().problems
    after = contents(out)
    assert len(after) == 2 + len(IMAGES) * len(KINDS) + 1
    assert all(after[name] == before[name] for name in before if name not in (RECORD, TABLE))
    whole = tmp_path / "whole"
    predict(output=whole)
    for file in out.glob("*.png"):  # it shows the cells, although they were there before
        assert file.read_bytes() == (whole / file.name).read_bytes()


@pytest.fixture
def many_cells(workdir, images, monkeypatch):
    """Makes b.tif one of 600 x 600 pixels with 180,000 cells, a pixel each; returns their ids."""
    tifffile.imwrite(images / "b.tif", np.zeros((600, 600), np.uint8))
    settings = InstanceSettings(0.5, 0, 0.0, 1, 0.0)
    (workdir / "instances.json").write_text(json.dumps(as_dict(settings)))
    is_cell = np.indices((600, 600)).sum(0) % 2

    def made_up(model, image, *, averaging, out):
        out[:] = np.stack([1 - is_cell, is_cell], axis=-1)

    monkeypatch.setattr(module, "predict_tiled", made_up)
    return np.where(is_cell, is_cell.cumsum().reshape(is_cell.shape), 0)


@pytest.mark.parametrize("is_ome", [False, True])
def test_more_cells_than_16_bits_hold(predict, images, tmp_path, monkeypatch, many_cells, is_ome):
    if is_ome:
        monkeypatch.setattr(hyperstack, "_MAX_IMAGEJ_BYTES", 1000)
    predict(images / "b.tif", kinds=["cells"])
    file = tmp_path / "out" / "b_cells.tif"
    with tifffile.TiffFile(file) as tif:
        assert (tif.is_ome, tif.pages[0].dtype) == (is_ome, np.uint32 if is_ome else np.float32)
        if not is_ome:
            assert (tif.imagej_metadata["min"], tif.imagej_metadata["max"]) == (0, 180_000)
    masks = tmp_path / "masks"
    masks.mkdir()
    file.rename(masks / "b.tif")
    (images / "a.tif").unlink()
    (images / "c.tif").unlink()
    (example,) = read_folder(images, masks, mask_rule="instances", classes=2, ignore_value=-1)
    np.testing.assert_array_equal(example.instances, many_cells)


def test_more_cells_than_imagej_holds(predict, images, tmp_path, monkeypatch, many_cells):
    monkeypatch.setattr(hyperstack, "_MAX_IMAGEJ_NUMBER", 179_999)
    kinds = ["classes", "cells"]
    assert predict(images / "b.tif", kinds=kinds).problems == (
        f"{images / 'b.tif'}: its cells cannot be written: numbers up to 180,000, expected at most "
        "179,999 in ImageJ's format; cut the image into parts",
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {RECORD, "b_classes.tif"}
    monkeypatch.setattr(hyperstack, "_MAX_IMAGEJ_BYTES", 1000)  # OME holds them
    assert not predict(images / "b.tif", kinds=kinds).problems
    assert tifffile.imread(tmp_path / "out" / "b_cells.tif").max() == 180_000


def test_another_scale_is_not_predicted_in_pieces(predict, workdir, images, tmp_path, monkeypatch):
    checkpoint.save(workdir, a_state(), a_record(9, scale=0.5))
    assert not predict(images / "b.tif", step="9").problems
    needed = 70 * 50 * 32 + 4 * 0.5 * (70**2 + 50**2)
    for memory, is_enough in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(module, "device_memory_bytes", lambda m=memory: m)
        problems = predict(images / "a.tif", step="9").problems
        assert is_enough == (not problems)
        (tmp_path / "out" / "a_cells.tif").unlink(missing_ok=True)
    assert "has pages of 70 x 50 pixels, too large for a network of scale 0.5" in problems[0]


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

    monkeypatch.setattr(results, "reserve", reserve)
    problems = predict(kinds=["classes"]).problems
    assert [line.split(": ", 1)[1] for line in problems] == [
        "[Errno 28] No space left on device"
    ] * 3
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD]


def test_output_that_is_not_finite_is_told(predict, workdir, images, monkeypatch):
    def broken(model, image, *, averaging, out):
        out[:] = np.nan

    monkeypatch.setattr(module, "predict_tiled", broken)
    (line,) = predict(images / "a.tif").problems
    assert "a.tif: page 0: the network's output is not finite; use" in line


def test_zarr_is_predicted_as_the_same_tiff(predict, images, tmp_path):
    pixels = RNG.integers(0, 255, (2, 3, 40, 50), np.uint8)
    sizes = {"unit": "um", "spacing": 2.5, "finterval": 0.5}
    tifffile.imwrite(
        images / "tiff.tif",
        pixels,
        imagej=True,
        resolution=(0.25, 0.5),  # exactly what older versions of tifffile write, too
        metadata=sizes | {"axes": "TZYX"},
    )
    names = "tczyx"
    scale = [0.5, 1, 2.5, 2, 4]
    write_group(images / "zarr.ome.zarr", "0.5", multiscale(names, scale=scale))
    write_array(images / "zarr.ome.zarr" / "0", "0.5", pixels[:, None], [1, 1, 2, 16, 16])
    out = tmp_path / "out"
    for pattern in (images, images / "zarr.ome.zarr", images / "**/*"):
        done = predict(pattern)
        assert not done.problems
    assert done.files == done.skipped == 5
    files = [*out.glob("tiff_*")]
    assert len(files) == len(KINDS) + 5  # pages
    for file in files:
        same = (out / file.name.replace("tiff", "zarr")).read_bytes()
        assert same.replace(b"zarr.ome.zarr", b"tiff.tif") == file.read_bytes()
    assert read_frame(out / "zarr_cells.tif", 6) == Frame("TZ", (2, 3), (4, 2), 2.5, 0.5, "um")
    shutil.copytree(images / "zarr.ome.zarr", tmp_path / "series.zarr/0")
    series = predict(tmp_path / "series.zarr/0", kinds=["cells"], output=tmp_path / "series")
    assert (series.done, series.problems) == (1, ())
    assert (tmp_path / "series/0_cells.tif").read_bytes() == (out / "zarr_cells.tif").read_bytes()
    before = rows(out)["zarr"]["sha256"]
    (images / "zarr.ome.zarr" / "0/c/1/0/0/0/0").write_bytes(b"")
    assert "holds the results of another image" in predict(images / "*.zarr").problems[0]
    again = predict(images / "*.zarr", output=tmp_path / "other")
    assert "cannot be read" in again.problems[0] and len(before) == 64
    (images / "a.zarr").mkdir()
    with pytest.raises(InputError, match="a.zarr: its results would have the same names as"):
        predict()
    assert "is not an OME-Zarr image" in predict(images / "a.zarr", output=out / "a").problems[0]


def test_uncertainty_is_a_file_of_two_channels(predict, workdir, images, tmp_path):
    kinds = ["probabilities", "classes", "uncertainty"]
    assert not predict(kinds=kinds, averaging="symmetries").problems
    model = load(workdir)
    for name, image in IMAGES.items():
        pages = image.reshape(-1, *image.shape[-2:])
        expected = [predict_with_uncertainty(model, page) for page in pages]
        found = read_image(tmp_path / "out" / f"{name}_uncertainty.tif")
        np.testing.assert_array_equal(found, [uncertainty for _, uncertainty in expected])
        mean = read_image(tmp_path / "out" / f"{name}_probabilities.tif")
        np.testing.assert_array_equal(mean, [mean for mean, _ in expected])
    with tifffile.TiffFile(tmp_path / "out" / "c_uncertainty.tif") as tif:
        assert tif.imagej_metadata["Labels"] == ["entropy in bits", "spread"] * 2


def test_a_single_view_has_no_uncertainty(predict, tmp_path):
    with pytest.raises(
        InputError, match="a single network gives only one prediction; give --averaging"
    ):
        predict(kinds=["uncertainty"])
    assert not (tmp_path / "out").exists()


def test_images_are_ranked_by_what_to_annotate_next(predict, tmp_path):
    out = tmp_path / "out"
    predictions = predict(kinds=["classes"], averaging="symmetries", rank=True)
    assert predictions.ranking == out / "rank.html" and not predictions.problems
    assert str(predictions).endswith(f"\nOpen {out / 'rank.html'}")
    entropy = {
        (f"{name}.tif", str(page)): uncertainty[..., 0].mean()
        for name in IMAGES
        for page, uncertainty in enumerate(read_image(out / f"{name}_uncertainty.tif"))
    }
    rows = [*csv.DictReader((out / "rank.csv").read_text().splitlines())]
    order = [(row["image"], row["page"]) for row in rows]
    assert order == sorted(entropy, key=entropy.get, reverse=True) and len(order) == 4
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        assert float(row["mean_entropy_bits"]) == pytest.approx(
            entropy[row["image"], row["page"]], rel=1e-5
        )
    page = (out / "rank.html").read_text()
    assert page.count("<img ") == 2 * len(rows) and "c.tif, page 1" in page
    # Again, when everything is there.
    assert predict(kinds=["classes"], averaging="symmetries", rank=True).skipped == 3


def test_the_parts_to_annotate_are_those_with_the_highest_mean(monkeypatch):
    monkeypatch.setattr(ranking, "_REGIONS", 2)
    monkeypatch.setattr(ranking, "_SIDE", 20)
    entropy = np.zeros((60, 90))
    entropy[10:20, 70:80], entropy[40:50, 5:15] = 0.5, 0.7
    (first, second) = ranking._regions(entropy)
    assert entropy[first].sum() == pytest.approx(70) and entropy[first].shape == (20, 20)
    assert entropy[second].sum() == pytest.approx(50)
    # No part is larger than the image, and none overlaps with another.
    assert ranking._regions(entropy[:5, :7]) == [(slice(0, 5), slice(0, 7))]
    # Of a large image each n-th pixel is seen.
    monkeypatch.setattr(ranking, "_SEEN_SIDE", 30)
    (rows, columns), _ = ranking._regions(entropy[:, :88])
    assert (rows.start % 3, rows.stop - rows.start, columns.stop - columns.start) == (0, 18, 18)
    assert entropy[rows, columns].sum() == pytest.approx(70)
    assert ranking._regions(entropy[:, 70:])[0][1].stop == 20
