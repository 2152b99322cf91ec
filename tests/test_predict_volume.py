import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.test_checkpoint import a_record, a_state
from tests.test_ome_zarr import multiscale, problem, write_array, write_group
from unet_jax import InputError, checkpoint, load, measure
from unet_jax.errors import RunFailed
from unet_jax.files.hyperstack import volume_frame
from unet_jax.files.ome_zarr import open_volume
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.model import Model
from unet_jax.network import UNet, init_params
from unet_jax.overlap_tile import predict_tiled
from unet_jax.tiles import side_of_step
from unet_jax.volumes import blocks
from unet_jax.volumes.predict_volume import predict_volume

ROOT = Path(__file__).parents[1]
ALL = ("probabilities", "classes", "cells")
SETTINGS = InstanceSettings(smallest_cell=4, largest_hole=6, neck_ratio=0.75, border=1.0)


def a_model(depth=3, channels=1, classes=2):
    network = UNet(width=2, depth=depth, classes=classes)
    return Model.of(network, init_params(jax.random.key(depth), network, channels))


def a_volume(folder, shape=(2, 150, 201), dtype="uint8", version="0.5", names="zyx"):
    """Pixels that make cells of all sizes, also over the borders of blocks."""
    noise = np.random.default_rng(0).normal(size=shape)
    pixels = (np.cumsum(noise, axis=names.index("x")) * 9 + 100).clip(0, 250).astype(dtype)
    write_group(folder, version, multiscale(names))
    chunks = [{"y": 40, "x": 50}.get(name, 1) for name in names]
    write_array(folder / "0", version, pixels, chunks)
    return pixels


def pixels_of(group):
    return open_volume(group).array.read().result()


def snapshot(folder):
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return {
        file.relative_to(folder): (file.read_bytes(), file.stat().st_mtime_ns) for file in files
    }


@pytest.mark.parametrize(
    ("version", "dtype", "depth", "averaging"),
    [
        ("0.4", "uint8", 3, "symmetries"),
        ("0.5", "uint16", 4, "none"),
        ("sharded", "float32", 5, "none"),
        ("sharded", "float32", 3, "symmetries"),
    ],
)
def test_a_volume_is_bit_for_bit_its_images(tmp_path, version, dtype, depth, averaging):
    pixels = a_volume(tmp_path / "in", dtype=dtype, version=version)
    model, out = a_model(depth), tmp_path / "out.ome.zarr"
    side = side_of_step(64, depth)
    images = [predict_tiled(model, a, tile_side=side, averaging=averaging) for a in pixels]
    # An untrained network's cells are half of the pixels.
    settings = replace(SETTINGS, threshold=float(np.median(1 - images[0][..., 0])))
    options = {"write": ALL, "averaging": averaging, "settings": settings, "block_side": 64}
    result = predict_volume(model, tmp_path / "in", out, **options)
    assert (result.blocks, result.done, result.before, result.problems) == (24, 24, 0, ())
    probabilities = pixels_of(out / "probabilities")
    cells = 0
    for z, whole in enumerate(images):
        np.testing.assert_array_equal(np.moveaxis(probabilities[:, z], 0, -1), whole)
        np.testing.assert_array_equal(pixels_of(out / "labels/classes")[z], whole.argmax(-1))
        found = find_cells(1 - whole[..., 0], settings)
        np.testing.assert_array_equal(pixels_of(out / "labels/cells")[z], found)
        mask = np.where(1 - whole[..., 0] > settings.threshold, 255, 0)
        np.testing.assert_array_equal(pixels_of(out)[z], mask)
        cells += found.max()
    assert cells > 5
    before = snapshot(out)
    again = predict_volume(model, tmp_path / "in", out, **options)
    assert (again.done, again.before) == (24, 24) and snapshot(out) == before


def test_each_array_is_listed_once(tmp_path, monkeypatch):
    a_volume(tmp_path / "in")
    listed = []
    finished = blocks.finished
    monkeypatch.setattr(blocks, "finished", lambda array: listed.append(array) or finished(array))
    monkeypatch.setattr(blocks, "predict", lambda job, block: None)
    predict_volume(
        a_model(), tmp_path / "in", tmp_path / "out", write=(), block_side=64, part=(0, 1)
    )
    assert len(listed) == 1


def test_a_result_is_not_mixed_with_that_of_another_source_or_number_of_threads(
    tmp_path, monkeypatch
):
    a_volume(tmp_path / "in", (1, 50, 60))
    a_volume(tmp_path / "other", (1, 50, 60))
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out")
    told = problem(predict_volume, a_model(), tmp_path / "other", tmp_path / "out")
    assert "source = in, not other" in told
    monkeypatch.setenv("NPROC", "77")
    assert "77 thread(s)" in problem(predict_volume, a_model(), tmp_path / "in", tmp_path / "out")
    monkeypatch.delenv("NPROC")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert predict_volume(a_model(), tmp_path / "in", tmp_path / "moved").before == 1


def test_what_another_run_deletes_is_not_taken_for_black(tmp_path, monkeypatch):
    a_volume(tmp_path / "in")
    number = blocks.number

    def then_deleted(job, plane):
        number(job, plane)
        shutil.rmtree(tmp_path / "out" / "intermediate" / "0" / "c" / "0", ignore_errors=True)

    options = {"block_side": 64, "write": ("cells",), "settings": SETTINGS}
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "number", then_deleted)
        told = predict_volume(a_model(), tmp_path / "in", tmp_path / "out", **options).problems
    assert len(told) == 12 and "cannot be read" in told[0] and told[0].startswith(f"{tmp_path}/in")
    assert predict_volume(a_model(), tmp_path / "in", tmp_path / "out", **options).problems == ()
    predict_volume(a_model(), tmp_path / "in", tmp_path / "again", **options)
    cells = [pixels_of(tmp_path / name / "labels" / "cells") for name in ("out", "again")]
    np.testing.assert_array_equal(*cells)


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    a_volume(tmp_path / "in")
    options = {"write": ALL, "settings": SETTINGS, "block_side": 64}
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out", **options)
    expected = {name: content for name, (content, _) in snapshot(tmp_path / "out").items()}
    lost = [
        *("probabilities/0/c/0/1/0/2", "0/c/0/1/3", "1/c/1/1/1", "labels/cells/0/c/1/2/2"),
        *("labels/cells/1/c/0/0/0", "labels/classes/2/c/1/0/0"),
    ]
    for name in lost:
        (tmp_path / "out" / name).unlink()
    done = []
    for name in ("measure", "predict", "find", "number", "grow", "halve"):

        def noted(function, name, job, item, **options):
            done.append((name, *item))
            return function(job, item, **options)

        monkeypatch.setattr(blocks, name, partial(noted, getattr(blocks, name), name))
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out", **options)
    assert {name: content for name, (content, _) in snapshot(tmp_path / "out").items()} == expected
    assert [item for item in done if item[0] == "measure"] == []
    predicted = [item[1:] for item in done if item[0] == "predict"]
    assert predicted == [(0, 0, 1, 3), (0, 1, 0, 2)]
    assert len([item for item in done if item[0] == "find"]) == 12  # of one image
    assert [item for item in done if item[0] == "grow"] == [("grow", 0, 1, 2, 2)]
    assert len([item for item in done if item[0] == "halve"]) == 3


def test_axes_of_any_order_and_a_plain_image(tmp_path):
    pixels = a_volume(tmp_path / "in", (70, 3, 90, 2), names="yzxt")
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    volume = open_volume(tmp_path / "out" / "labels" / "classes")
    assert volume.axes.names == "tzyx" and volume.axes.scale == (3.5, 1.5, 0.5, 2.5)
    image = predict_tiled(a_model(), pixels[:, 2, :, 1], tile_side=side_of_step(64, 3))
    np.testing.assert_array_equal(volume.array[1, 2].read().result(), image.argmax(-1))
    a_volume(tmp_path / "plain", (50, 60), names="yx")
    predict_volume(a_model(), tmp_path / "plain", tmp_path / "plane", write=("probabilities",))
    assert open_volume(tmp_path / "plane" / "probabilities").axes.names == "cyx"


def test_several_channels_and_classes(tmp_path):
    pixels = a_volume(tmp_path / "in", (3, 70, 90), names="cyx")
    model = a_model(channels=3, classes=4)
    predict_volume(model, tmp_path / "in", tmp_path / "out", write=ALL, block_side=64)
    image = np.moveaxis(pixels, 0, -1)
    whole = predict_tiled(model, image, tile_side=side_of_step(64, 3))
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "out" / "probabilities"), np.moveaxis(whole, -1, 0)
    )


def test_an_image_that_cannot_be_predicted_is_told_and_the_others_go_on(tmp_path):
    pixels = a_volume(tmp_path / "in", (3, 100, 100), dtype="float32").copy()
    pixels[1, 70, 30] = np.nan
    shutil.rmtree(tmp_path / "in" / "0")
    write_array(tmp_path / "in" / "0", "0.5", pixels, [1, 40, 50])
    result = predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    assert (result.done, result.blocks) == (8, 12)
    assert result.problems == (
        f"{tmp_path}/in: t 0, z 1, rows 64 to 99, columns 0 to 63: holds NaN, infinite or huge "
        "pixels, expected numbers up to 1e+30",
    )
    assert not (tmp_path / "out" / "labels" / "cells" / "0" / "c" / "1").exists()
    shutil.rmtree(tmp_path / "in" / "0")
    write_array(tmp_path / "in" / "0", "0.5", np.nan_to_num(pixels), [1, 40, 50])
    result = predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    assert (result.done, result.before, result.problems) == (12, 8, ())


def test_a_damaged_chunk_is_told_with_its_place(tmp_path):
    a_volume(tmp_path / "in")
    (tmp_path / "in/0/c/1/2/0").write_bytes(b"x")
    result = predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    assert (result.done, result.blocks, len(result.problems)) == (12, 24, 1)
    assert "t 0, z 1" in result.problems[0]


def test_chunks_that_miss_are_told(tmp_path, caplog):
    a_volume(tmp_path / "in")
    for name in ("0/0/0", "0/1/0", "1/3/4"):
        (tmp_path / "in" / "0" / "c" / name).unlink()
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out")
    says = f"{tmp_path}/in: 3 chunk(s) are missing, in 2 of its images, and are read as the fill"
    says += " value"
    assert caplog.messages == [says]


def test_parts_and_a_last_call_are_the_whole(tmp_path):
    a_volume(tmp_path / "in")
    options = {"settings": SETTINGS, "block_side": 64}
    predict_volume(a_model(), tmp_path / "in", tmp_path / "a.zarr", **options)
    done = [
        predict_volume(a_model(), tmp_path / "in", tmp_path / "b.zarr", part=(i, 5), **options).done
        for i in (4, 0, 2, 1, 3)
    ]
    assert sum(done) == 24 and 4 <= min(done) <= max(done) <= 5
    last = predict_volume(a_model(), tmp_path / "in", tmp_path / "b.zarr", **options)
    assert (last.done, last.before) == (24, 24)
    for name in ("labels/cells", "labels/classes", ""):
        expected = pixels_of(tmp_path / "a.zarr" / name)
        np.testing.assert_array_equal(pixels_of(tmp_path / "b.zarr" / name), expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"write": ["overlay"]}, "expected probabilities, classes, cells, table for a volume"),
        ({"averaging": "rotations"}, "expected none or symmetries for a volume, not 'rotations'"),
        ({"block_side": 100}, "block_side: expected a multiple of 64, not 100"),
        ({"block_side": 0}, "block_side: expected a multiple of 64, not 0"),
        ({"part": (3, 3)}, "part: expected a part such as 3/40, with parts 0 to 39, not 3/3"),
        ({"part": (0, 0)}, "part: expected"),
    ],
)
def test_what_makes_no_sense_is_told_before(tmp_path, options, says):
    a_volume(tmp_path / "in", (1, 50, 60))
    assert says in problem(predict_volume, a_model(), tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_models_and_places_that_do_not_fit(tmp_path):
    a_volume(tmp_path / "in", (1, 50, 60))
    scaled = Model(**(a_model().__dict__ | {"scale": 0.5}))
    call = (predict_volume, scaled, tmp_path / "in", tmp_path / "out")
    assert "scale of 0.5" in problem(*call)
    call = (predict_volume, a_model(channels=2), tmp_path / "in", tmp_path / "out")
    assert "has 1 channel(s), expected 2 as in training" in problem(*call)
    call = (predict_volume, a_model(), tmp_path / "in", tmp_path / "in" / "out")
    assert "is inside the volume" in problem(*call)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    call = (predict_volume, a_model(), tmp_path / "in", tmp_path / "other")
    assert "exists already and is not a result" in problem(*call)
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out")
    call = (predict_volume, a_model(), tmp_path / "in", tmp_path / "out")
    assert "averaging = none, not symmetries" in problem(*call, averaging="symmetries")


def test_two_runs_into_one_output_are_refused(tmp_path):
    a_volume(tmp_path / "in", (1, 50, 60))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from unet_jax.files.output import lock\n"
        "lock(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    (tmp_path / "out").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "out"], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        call = (predict_volume, a_model(), tmp_path / "in", tmp_path / "out")
        assert "another run is writing to it" in problem(*call)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_a_disk_that_gets_full_ends_it_and_what_is_there_is_whole(tmp_path, monkeypatch):
    a_volume(tmp_path / "in")

    def full(*_):
        raise ValueError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "find_pieces", full)
        with pytest.raises(ValueError):  # no failure of the disk
            predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    (tmp_path / "out" / "labels" / "cells" / "0").rename(tmp_path / "moved")
    (tmp_path / "out" / "labels" / "cells" / "0").touch()
    with pytest.raises((RunFailed, InputError), match="cannot be (written|created)"):
        predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    (tmp_path / "out" / "labels" / "cells" / "0").unlink()
    (tmp_path / "moved").rename(tmp_path / "out" / "labels" / "cells" / "0")
    result = predict_volume(a_model(), tmp_path / "in", tmp_path / "out", block_side=64)
    assert (result.done, result.before, result.problems) == (24, 24, ())


def test_volumes_lie_in_buckets_too(tmp_path, bucket):
    a_volume(tmp_path / "in")
    options = {"settings": SETTINGS, "block_side": 128}
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out", **options)
    service = boto3_client()
    for file in (tmp_path / "in").rglob("*"):
        if file.is_file():
            name = f"in/{file.relative_to(tmp_path / 'in')}"
            service.upload_file(str(file), bucket.removeprefix("s3://"), name)
    half = predict_volume(a_model(), f"{bucket}/in", f"{bucket}/out", part=(0, 2), **options)
    assert (half.done, half.blocks) == (4, 4)
    result = predict_volume(a_model(), f"{bucket}/in", f"{bucket}/out", **options)
    assert (result.done, result.before, result.problems) == (8, 4, ())
    for name in ("labels/cells", "labels/classes"):
        found = open_volume(f"{bucket}/out/{name}").array.read().result()
        np.testing.assert_array_equal(found, pixels_of(tmp_path / "out" / name))


def boto3_client():
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])


def predict(*arguments):
    return subprocess.run(
        [sys.executable, "predict.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_the_program_takes_a_volume_and_tells_what_does_not_fit(tmp_path):
    a_volume(tmp_path / "in.zarr")
    checkpoint.save(tmp_path / "run", a_state(), a_record(1))
    where = [f"--checkpoint={tmp_path}/run", f"--images={tmp_path}/in.zarr"]
    volume = [*where, f"--output={tmp_path}/out.ome.zarr", "--block_side=64"]
    done = predict(*volume, "--part=half")
    assert done.returncode == 2
    assert done.stderr == "predict.py: --part: expected a part such as 3/40, not 'half'.\n"
    assert not (tmp_path / "out.ome.zarr").exists()
    done = predict(*where, f"--output={tmp_path}/results", "--workers=2")
    assert done.returncode == 2 and "--workers is only for volumes" in done.stderr
    done = predict(*volume, "--part=0/2")
    assert done.returncode == 0 and done.stdout.endswith(
        "12 of 12 block(s) done, 0 of them earlier.\n"
    )
    done = predict(*volume)
    assert done.stdout.endswith("out.ome.zarr: 24 of 24 block(s) done, 12 of them earlier.\n")
    model = load(tmp_path / "run")
    image = open_volume(tmp_path / "in.zarr").array[0].read().result()
    whole = predict_tiled(model, image, tile_side=side_of_step(64, model.network.depth))
    classes = pixels_of(tmp_path / "out.ome.zarr" / "labels" / "classes")[0]
    np.testing.assert_array_equal(classes, whole.argmax(-1))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_table_is_that_of_the_images(tmp_path, channels):
    shape, names = ((2, 150, 201), "zyx") if channels == 1 else ((2, 2, 150, 201), "czyx")
    a_volume(tmp_path / "in", shape, names=names)
    out, model = tmp_path / "out", a_model(channels=channels)
    options = {"settings": SETTINGS, "block_side": 64, "write": ["table"]}
    assert not predict_volume(model, tmp_path / "in", out, **options).problems
    rows = [*csv.DictReader((out / "table.csv").read_text().splitlines())]
    cells = pixels_of(out / "labels" / "cells")
    size = volume_frame(open_volume(tmp_path / "in")).micrometres()
    assert size and len(rows) > 20
    for z in range(2):
        image = open_volume(tmp_path / "in").plane(0, z)[:, :]
        expected = measure(image, cells[z], size)
        for name in expected:
            if name.startswith(("perimeter", "solidity")):
                assert name not in rows[0]
                continue
            found = [row[name] for row in rows if row["z"] == str(z)]
            if name == "at_border":
                found = [text == "True" for text in found]
            else:
                found = [float(text or "nan") for text in found]
            if name.startswith("orientation"):
                found = (found - expected[name] + 90) % 180 - 90 + expected[name]
            np.testing.assert_allclose(found, expected[name], rtol=1e-7, atol=1e-7, err_msg=name)
    assert not (out / "intermediate").exists()
    before = snapshot(out)
    predict_volume(model, tmp_path / "in", out, **options)
    assert snapshot(out) == before
    with pytest.raises(InputError, match="write: expected .*table for a volume, not 'rois'"):
        predict_volume(model, tmp_path / "in", tmp_path / "new", write=["rois"])


def test_a_table_without_any_cell(tmp_path):
    a_volume(tmp_path / "in", (100, 130), names="yx")
    settings = replace(SETTINGS, threshold=1.0)
    predict_volume(a_model(), tmp_path / "in", tmp_path / "out", settings=settings, write=["table"])
    (header,) = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert header.startswith("t,z,number,centre_x_")
