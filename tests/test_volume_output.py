import json
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore

from tests.test_ome_zarr import RNG, UNITS, make_source, problem
from unet_jax import InputError
from unet_jax.files import zarr_store
from unet_jax.files.ome_zarr import Axes, missing_chunks, open_volume, read
from unet_jax.volumes import output as volume_output
from unet_jax.volumes.output import (
    NewImage,
    check_writable,
    count_levels,
    create_output,
    fill_block,
    finished,
)

MADE_WITH = {"params": "abc", "cells": {"neck": 1.5}}


def an_image(names="tczyx", shape=(2, 2, 3, 20, 37), dtype="float32", **options):
    axes = Axes(
        names,
        tuple(0.1 * (i + 1) for i in range(len(names))),
        tuple(UNITS.get(name) for name in names),
        (0.0,) * len(names),
    )
    return NewImage(axes, shape, dtype, **({"block": 8, "chunk": 4, "levels": 3} | options))


def cells(**options):
    return an_image("zyx", (3, 20, 37), "uint32", **options)


def test_a_result_is_read_again_with_its_axes(tmp_path):
    axes = Axes("zyx", (3.0, 0.5, 0.25), ("nanometer", None, "micrometer"), (0.0, 7.0, 0.0))
    new = NewImage(axes, (2, 9, 10), "uint8", block=8, chunk=4, levels=2)
    output = create_output(tmp_path / "out", MADE_WITH, new)
    pixels = RNG.integers(0, 255, (2, 9, 10), np.uint8)
    output.image[0].write(pixels).result()
    volume = open_volume(tmp_path / "out")
    assert volume.axes == axes
    np.testing.assert_array_equal(read(volume, 0, 1, slice(0, 9), slice(0, 10))[..., 0], pixels[1])


def test_the_metadata_are_those_of_the_standard(tmp_path):
    create_output(tmp_path, MADE_WITH, an_image(), {"cells": cells()})
    group = json.loads((tmp_path / "zarr.json").read_text())
    assert group["zarr_format"] == 3 and group["node_type"] == "group"
    assert group["attributes"]["unet_jax"] == MADE_WITH
    ome = group["attributes"]["ome"]
    (described,) = ome["multiscales"]
    assert ome["version"] == "0.5"
    assert described["axes"][1:3] == [
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space", "unit": "micrometer"},
    ]
    levels = [level["coordinateTransformations"] for level in described["datasets"]]
    assert levels[0] == [{"type": "scale", "scale": [0.1 * (i + 1) for i in range(5)]}]
    scales = [level[0]["scale"] for level in levels]
    np.testing.assert_allclose(scales[2], np.array(scales[0]) * [1, 1, 1, 4, 4])
    names = json.loads((tmp_path / "labels" / "zarr.json").read_text())["attributes"]["ome"]
    assert names == {"version": "0.5", "labels": ["cells"]}
    labels = json.loads((tmp_path / "labels/cells/zarr.json").read_text())["attributes"]["ome"]
    assert labels["image-label"] == {"source": {"image": "../../"}}
    array = json.loads((tmp_path / "labels/cells/2/zarr.json").read_text())
    assert array["dimension_names"] == ["z", "y", "x"] and array["shape"] == [3, 5, 10]


def test_a_block_is_one_object_even_if_all_zero(tmp_path):
    array = create_output(tmp_path, {}, an_image()).image[0]
    assert finished(array) == set()
    array[1, :, 2, 8:16, 32:37].write(np.zeros((2, 8, 5), np.float32)).result()
    array[0, :, 0, 16:20, :8].write(np.ones((2, 4, 8), np.float32)).result()
    assert finished(array) == {(1, 0, 2, 1, 4), (0, 0, 0, 2, 0)}
    files = [file for file in (tmp_path / "0" / "c").rglob("*") if file.is_file()]
    assert len(files) == 2
    sent = pickle.loads(pickle.dumps(array))  # as to a worker
    sent[0, :, 1, :8, :8].write(np.zeros((2, 8, 8), np.float32)).result()
    assert finished(array) >= {(0, 0, 1, 0, 0)}


def test_a_block_that_was_being_written_is_not_finished(tmp_path):
    array = create_output(tmp_path, {}, cells()).image[0]
    array[0, :8, :8].write(1).result()
    (tmp_path / "0/c/0/0/1.__lock").write_bytes(b"abc")
    (tmp_path / "0/c/0/0/1.part").write_bytes(b"abc")  # as tools that copy do
    assert finished(array) == {(0, 0, 0)}
    array[0, :8, 8:16].write(1).result()
    assert finished(array) == {(0, 0, 0), (0, 0, 1)}


def test_after_kills_each_block_that_is_there_is_whole(tmp_path):
    out = create_output(tmp_path, {}, NewImage(cells().axes, (3, 512, 512), "uint32", 256, 64))
    code = (
        "import pickle, sys, numpy as np\n"
        "array = pickle.loads(sys.stdin.buffer.read())\n"
        "print('ready', flush=True)\n"
        "pixels = np.random.default_rng(0).integers(1, 9, (256, 256), np.uint32)\n"
        "while True:\n"
        "    for z in range(3):\n"
        "        array[z, :256, 256:].write(pixels).result()\n"
    )
    expected = np.random.default_rng(0).integers(1, 9, (256, 256), np.uint32)
    for wait in (0.0, 0.003, 0.01, 0.02, 0.5):
        worker = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        worker.stdin.write(pickle.dumps(out.image[0]))
        worker.stdin.close()
        assert worker.stdout.readline() == b"ready\n"
        time.sleep(wait)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        for z, row, column in finished(out.image[0]):
            assert (row, column) == (0, 1)
            block = out.image[0][z, :256, 256:].read().result()
            np.testing.assert_array_equal(block, expected)
    assert finished(out.image[0])


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    array = create_output(tmp_path, {}, cells()).image[0]
    array[0, :8, :8].write(1).result()
    file = tmp_path / "0/c/0/0/0"
    content = file.read_bytes()
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(ValueError):
            array[0, :8, :8].read().result()
    file.write_bytes(content)
    assert (array[0, :8, :8].read().result() == 1).all()


def test_an_output_is_opened_again_if_it_was_made_with_the_same(tmp_path):
    for _ in range(2):
        output = create_output(tmp_path / "out", MADE_WITH, an_image(), {"cells": cells()})
        output.labels["cells"][0][0, :8, :8].write(1).result()
        assert finished(output.labels["cells"][0]) == {(0, 0, 0)}
    line = problem(create_output, tmp_path / "out", MADE_WITH | {"params": "def"}, an_image())
    assert line == f"{tmp_path}/out: holds results with params = abc, not def; " + (
        "give another --output."
    )
    line = problem(create_output, tmp_path / "out", MADE_WITH | {"step": 3}, an_image())
    assert "with step = None, not 3" in line
    line = problem(create_output, tmp_path / "out", {"params": "abc"}, an_image())
    assert "with cells = {'neck': 1.5}, not None" in line
    assert "with multiscales = " in problem(
        create_output, tmp_path / "out", MADE_WITH, an_image(levels=2)
    )
    smaller = an_image(shape=(2, 2, 3, 20, 36))
    assert "cannot be created" in problem(create_output, tmp_path / "out", MADE_WITH, smaller)


def test_of_many_that_begin_at_once_one_settles_what_it_is_made_with(tmp_path):
    def begin(number):
        try:
            create_output(tmp_path, {"a": number % 2}, an_image(), {"cells": cells()})
        except InputError as error:
            return number % 2, str(error)
        return number % 2, None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(begin, range(16)))
    won = json.loads((tmp_path / "zarr.json").read_text())["attributes"]["unet_jax"]["a"]
    refused = f"holds results with a = {won}, not {1 - won}"
    assert len(results) == 16
    for number, error in results:
        assert error is None if number == won else refused in error


def test_something_else_is_not_written_into(tmp_path):
    source = tmp_path / "in.ome.zarr"
    make_source(source)
    before = sorted(tmp_path.rglob("*"))
    assert "not a result; give another --output" in problem(create_output, source, {}, an_image())
    assert "not a result; give another --output" in problem(create_output, tmp_path, {}, an_image())
    (tmp_path / "file").touch()
    before.append(tmp_path / "file")
    assert f"{tmp_path}/file" in problem(create_output, tmp_path / "file", {}, an_image())
    assert sorted(tmp_path.rglob("*")) == sorted(before)


def test_a_place_that_cannot_be_written_to_is_told_before(tmp_path, monkeypatch):
    check_writable(tmp_path / "out", 1000)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    (tmp_path / "file").touch()
    assert "cannot be written to (" in problem(check_writable, tmp_path / "file", 1000)

    class Full:
        def __setitem__(self, name, value):
            raise ValueError(f"RESOURCE_EXHAUSTED: {len(value)} bytes\nNo space left on device")

    monkeypatch.setattr(volume_output, "open_kvstore", lambda url: Full())
    line = problem(check_writable, tmp_path, 1000)
    assert line.endswith("(RESOURCE_EXHAUSTED: 1000 bytes No space left on device).")


# Levels.


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "bool"])
@pytest.mark.parametrize("nearest", [True, False])
def test_levels_are_halved_block_by_block(tmp_path, dtype, nearest):
    names, shape = "tczyx", (2, 2, 3, 21, 37)
    new = an_image(names, shape, dtype)
    levels = create_output(tmp_path, {}, new).image
    pixels = RNG.integers(0, 2 if dtype == "bool" else 200, shape).astype(dtype)
    levels[0].write(pixels).result()
    expected = pixels
    for below, level in zip(levels, levels[1:], strict=False):
        grid = [
            -(-n // s)
            for n, s in zip(level.shape, level.chunk_layout.write_chunk.shape, strict=True)
        ]
        for index in np.ndindex(*grid):
            fill_block(below, level, names, index, nearest=nearest)
        assert finished(level) == set(np.ndindex(*grid))
        if nearest:
            expected = expected[..., ::2, ::2]
        else:
            odd = [(0, 0)] * 3 + [(0, n % 2) for n in expected.shape[-2:]]
            wide = np.pad(expected.astype(float), odd, mode="edge")
            *rest, h, w = wide.shape
            mean = wide.reshape(*rest, h // 2, 2, w // 2, 2).mean((-3, -1))
            expected = (mean if dtype == "float32" else np.rint(mean)).astype(dtype)
        found = level.read().result()
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_last_level_fits_in_a_block():
    assert [count_levels(n, 5, 8) for n in (1, 8, 9, 16, 17, 32, 33)] == [1, 1, 2, 2, 3, 3, 4]


# What others make of it.


def test_zarr_and_the_models_of_ome_accept_a_result(tmp_path):
    why = "reads what is written here by other libraries"
    zarr = pytest.importorskip("zarr", reason=f"{why}: zarr")
    image = pytest.importorskip("ome_zarr_models.v05.image", reason=f"{why}: ome-zarr-models")
    output = create_output(tmp_path, MADE_WITH, an_image(), {"cells": cells()})
    pixels = RNG.random((2, 2, 3, 20, 37)).astype(np.float32)
    output.image[0].write(pixels).result()
    group = zarr.open_group(str(tmp_path), mode="r")
    np.testing.assert_array_equal(group["0"][:], pixels)
    read_by_models = image.Image.from_zarr(group)
    assert len(read_by_models.ome_attributes.multiscales[0].datasets) == 3
    assert read_by_models.labels is not None


def test_volumes_lie_in_buckets_too(bucket):
    assert "no multiscales" in problem(open_volume, f"{bucket}/out")
    check_writable(f"{bucket}/out", 1000)
    for _ in range(2):
        output = create_output(f"{bucket}/out", MADE_WITH, an_image(), {"cells": cells()})
    labels = output.labels["cells"][0]
    labels[0, :8, 8:16].write(0).result()
    assert finished(labels) == {(0, 0, 1)}
    pixels = RNG.random((2, 2, 3, 20, 37)).astype(np.float32)
    output.image[0].write(pixels).result()
    volume = open_volume(f"{bucket}/out/")
    part = read(volume, 1, 2, slice(3, 20), slice(0, 9))
    np.testing.assert_array_equal(part, np.moveaxis(pixels[1, :, 2, 3:20, :9], 0, -1))
    assert missing_chunks(volume, 1, 2) == []
    cells_volume = open_volume(f"{bucket}/out/labels/cells")
    assert len(missing_chunks(cells_volume, 0, 0)) == 14
    assert "with params = abc, not x" in problem(
        create_output, f"{bucket}/out", MADE_WITH | {"params": "x"}, an_image()
    )
    tensorstore.KvStore.open(zarr_store.kvstore(f"{bucket}/other")).result()["a"] = b"1"
    assert "is not a result" in problem(create_output, f"{bucket}/other", {}, an_image())
