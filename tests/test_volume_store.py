import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorstore

from unet_jax import InputError
from unet_jax.volumes import store
from unet_jax.volumes.store import (
    Axes,
    NewImage,
    check_chunks,
    check_writable,
    count_levels,
    create_output,
    fill_block,
    finished,
    missing_chunks,
    open_volume,
    read,
)

RNG = np.random.default_rng(0)
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
SIZES = {"t": 2, "c": 3, "z": 4, "y": 11, "x": 13}
CHUNKS = {"t": 1, "c": 2, "z": 1, "y": 4, "x": 6}
MADE_WITH = {"params": "abc", "cells": {"neck": 1.5}}


def multiscale(names, path="0", scale=None, **more):
    scale = scale or [0.5 + i for i in range(len(names))]
    types = {"t": "time", "c": "channel"}
    axes = [{"name": name, "type": types.get(name, "space")} for name in names]
    for axis in axes:
        if axis["name"] in UNITS:
            axis["unit"] = UNITS[axis["name"]]
    steps = [{"type": "scale", "scale": scale}]
    return {"axes": axes, "datasets": [{"path": path, "coordinateTransformations": steps}]} | more


def write_group(folder, version, described):
    folder.mkdir(parents=True, exist_ok=True)
    if version == "0.4":
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        (folder / ".zattrs").write_text(json.dumps({"multiscales": [described]}))
    else:
        ome = {"version": "0.5", "multiscales": [described]}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        (folder / "zarr.json").write_text(json.dumps(group))


def write_array(folder, version, pixels, chunks, order="<", **metadata):
    """As others write it: `version` is 0.4, 0.5, or sharded."""
    kvstore = {"driver": "file", "path": f"{folder}/"}
    spec = {"kvstore": kvstore, "store_data_equal_to_fill_value": True}
    if version == "0.4":
        kind = pixels.dtype.newbyteorder(order).str
        spec |= {"driver": "zarr"}
        metadata = {"shape": pixels.shape, "chunks": chunks, "dtype": kind} | metadata
    else:
        endian = {"endian": "big" if order == ">" else "little"}
        codecs = [{"name": "bytes", "configuration": endian}]
        grid = chunks
        if version == "sharded":
            inner = {"chunk_shape": chunks, "codecs": codecs}
            codecs = [{"name": "sharding_indexed", "configuration": inner}]
            grid = [2 * side for side in chunks]
        spec |= {"driver": "zarr3"}
        metadata = {
            "shape": pixels.shape,
            "data_type": pixels.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
            "codecs": codecs,
        } | metadata
    spec["metadata"] = metadata
    array = tensorstore.open(spec, create=True).result()
    array.write(pixels).result()


def make_source(folder, version="0.5", names="zyx", dtype="uint16", order="<", **metadata):
    """A source of random pixels, and these."""
    pixels = RNG.integers(0, 2 if dtype == "bool" else 100, [SIZES[n] for n in names]).astype(dtype)
    write_group(folder, version, multiscale(names))
    write_array(folder / "0", version, pixels, [CHUNKS[n] for n in names], order, **metadata)
    return pixels


@pytest.fixture
def source(tmp_path):
    make_source(tmp_path / "in.ome.zarr")
    return tmp_path / "in.ome.zarr"


def problem(call, *arguments, **options):
    """The only line of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    (line,) = caught.value.args
    assert "\n" not in line and len(line) < 1000
    return line


@pytest.mark.parametrize("version", ["0.4", "0.5", "sharded"])
@pytest.mark.parametrize("names", ["tczyx", "yx", "zyx", "czyx", "tyx", "tcyx", "zcxy", "yxc"])
def test_a_part_of_each_image_is_read_whatever_the_axes(tmp_path, version, names):
    pixels = make_source(tmp_path, version, names)
    volume = open_volume(tmp_path)
    assert volume.axes == Axes(
        names,
        tuple(0.5 + i for i in range(len(names))),
        tuple(UNITS.get(name) for name in names),
        (0.0,) * len(names),
    )
    assert volume.shape == tuple(SIZES[n] if n in names else 1 for n in "tzyxc")
    whole = pixels.reshape([SIZES[n] for n in names] + [1] * (5 - len(names)))
    rest = [n for n in "tczyx" if n not in names]
    order = [(list(names) + rest).index(n) for n in "tzyxc"]
    whole = whole.transpose(order)
    for t, z in np.ndindex(whole.shape[:2]):
        part = read(volume, t, z, slice(3, 9), slice(2, 13))
        assert part.dtype == np.uint16
        np.testing.assert_array_equal(part, whole[t, z, 3:9, 2:13])


@pytest.mark.parametrize("version", ["0.4", "0.5", "sharded"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float64"])
def test_pixels_of_any_type_and_order_of_bytes_are_read(tmp_path, version, order, dtype):
    pixels = make_source(tmp_path, version, "yx", dtype, order)
    part = read(open_volume(str(tmp_path) + "/"), 0, 0, slice(0, 11), slice(0, 13))
    assert part.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(part[..., 0], pixels)


def test_scale_and_origin_are_those_of_both_transformations(tmp_path):
    described = multiscale("yx", scale=[2.0, 3.0])
    step = {"type": "translation", "translation": [10.0, 20.0]}
    described["datasets"][0]["coordinateTransformations"].append(step)
    described["coordinateTransformations"] = [{"type": "scale", "scale": [0.5, 2.0]}]
    write_group(tmp_path, "0.5", described)
    write_array(tmp_path / "0", "0.5", np.zeros((4, 4), np.uint8), [4, 4])
    axes = open_volume(tmp_path).axes
    assert axes.scale == (1.0, 6.0) and axes.origin == (5.0, 40.0)
    assert axes.of("cx") == Axes("cx", (1.0, 6.0), (None, "micrometer"), (0.0, 40.0))


# What cannot be used.


def test_a_folder_without_an_image_is_told(tmp_path):
    assert problem(open_volume, tmp_path).endswith(
        f"it has no multiscales; is there one in it, such as {tmp_path}/0?"
    )
    assert "no multiscales" in problem(open_volume, tmp_path / "none")
    assert "expected a path or s3://" in problem(open_volume, "http://localhost/in.zarr")


BAD_METADATA = {
    "axes": ({"axes": [{"name": n} for n in "qyx"]}, "axes q, y, x, expected some of t, c, z"),
    "twice": ({"axes": [{"name": n} for n in "yyx"]}, "axes y, y, x"),
    "without x": ({"axes": [{"name": n} for n in "tzy"]}, "axes t, z, y"),
    "nested": ({"axes": [{"name": ["y"]}] * 3}, "not those of OME-Zarr"),
    "names": ({"axes": ["z", "y", "x"]}, "not those of OME-Zarr 0.4 or 0.5"),
    "no axes": ({"axes": None}, "not those of OME-Zarr"),
    "unit": ({"axes": [{"name": n, "unit": 3} for n in "zyx"]}, "units 3, 3, 3"),
    "scale 0": (multiscale("zyx", scale=[1, 0, 1]), "scale 1.0, 0.0, 1.0, expected above 0"),
    "scale inf": (multiscale("zyx", scale=[1, float("inf"), 1]), "scale 1, inf, 1"),
    "scale 2": (multiscale("zyx", scale=[1, 1]), "scale 1, 1"),
    "scale text": (multiscale("zyx", scale=["a", 1, 1]), "not those of OME-Zarr"),
    "two axes": (multiscale("yx"), "shape (4, 11, 13), expected axes y, x"),
    "no datasets": ({"datasets": []}, "not those of OME-Zarr"),
    "missing": (multiscale("zyx", "1"), "its array '1' is missing, there is no zarr.json"),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_that_make_no_sense_are_told_in_a_line(source, name):
    change, expected = BAD_METADATA[name]
    write_group(source, "0.5", multiscale("zyx") | change)
    assert expected in problem(open_volume, source)


@pytest.mark.parametrize(
    "path",
    [
        "../other/0",
        "/0",
        "",
        ".",
        "a/../0",
        "a//0",
        "0/",
        "C:0",
        "..\\other",
        "http://a/0",
        3,
        None,
    ],
)
def test_an_array_outside_of_the_group_is_not_opened(source, path):
    make_source(source.parent / "other")
    shutil.copytree(source / "0", source / "a" / "0")
    write_group(source, "0.5", multiscale("zyx", path))
    assert f"its array {path!r} is not in it" in problem(open_volume, source)
    write_group(source, "0.5", multiscale("zyx", "a/0"))
    open_volume(source)


def test_a_link_to_elsewhere_is_not_followed(source):
    make_source(source.parent / "other")
    (source / "1").symlink_to(source.parent / "other" / "0")
    write_group(source, "0.5", multiscale("zyx", "1"))
    assert "is a link to elsewhere" in problem(open_volume, source)
    (source / "zarr.json").unlink()
    (source / "zarr.json").symlink_to(source.parent / "other" / "zarr.json")
    assert "no plain file" in problem(open_volume, source)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", "large"])
def test_damaged_or_large_metadata_are_not_read(source, name, content):
    (source / name).write_text(content)
    if content == "large":
        os.truncate(source / name, 2**26 + 1)
    assert "zarr.json: cannot be read" in problem(open_volume, source)


def test_a_database_in_place_of_an_array_is_not_opened(source):
    """TensorStore's own detection would."""
    shutil.rmtree(source / "0")
    database = {"driver": "ocdbt", "base": f"file://{source}/0/"}
    keys = tensorstore.KvStore.open(database).result()
    make_source(source.parent / "other")
    for file in (source.parent / "other" / "0").rglob("*"):
        if file.is_file():
            keys[file.relative_to(source.parent / "other" / "0").as_posix()] = file.read_bytes()
    assert tensorstore.open({"driver": "zarr3", "kvstore": database}).result().shape == (4, 11, 13)
    assert "its array '0' is missing" in problem(open_volume, source)


def test_pixels_that_are_no_real_numbers_are_refused(tmp_path):
    write_group(tmp_path, "0.5", multiscale("yx"))
    write_array(tmp_path / "0", "0.5", np.zeros((4, 4), np.complex64), [4, 4])
    assert "has pixels of complex64, expected real numbers" in problem(open_volume, tmp_path)


def test_a_chunk_larger_than_the_memory_is_refused(tmp_path):
    write_group(tmp_path, "0.5", multiscale("yx"))
    write_array(tmp_path / "0", "0.5", np.zeros((4, 4), np.uint8), [4, 4])
    file = tmp_path / "0" / "zarr.json"
    large = json.loads(file.read_text())
    large["chunk_grid"]["configuration"]["chunk_shape"] = [2**20, 2**20]
    file.write_text(json.dumps(large))
    assert "has chunks of 1,099,511,627,776 bytes" in problem(open_volume, tmp_path)


def test_a_damaged_chunk_is_told(tmp_path):
    make_source(tmp_path, "0.5", "zyx")
    (tmp_path / "0" / "c" / "1" / "0" / "0").write_bytes(b"abc")
    volume = open_volume(tmp_path)
    read(volume, 0, 0, slice(0, 4), slice(0, 6))
    assert "t 0, z 1: cannot be read" in problem(read, volume, 0, 1, slice(0, 4), slice(0, 6))


# Chunks that are missing.


@pytest.mark.parametrize("separator", "./")
@pytest.mark.parametrize("version", ["0.4", "v2 keys", "0.5", "sharded"])
@pytest.mark.parametrize("names", ["tczyx", "yxz"])
def test_missing_chunks_are_those_of_the_image(tmp_path, separator, version, names):
    keys = {"chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}}}
    if version == "0.4":
        keys = {"dimension_separator": separator}
    elif version == "v2 keys":
        keys["chunk_key_encoding"]["name"] = "v2"
    make_source(tmp_path, "0.5" if version == "v2 keys" else version, names, **keys)
    volume = open_volume(tmp_path)
    check_chunks(volume, 1, 2)
    assert missing_chunks(volume, 1, 2) == []
    index = {"t": 1, "c": 1, "z": 2, "y": 2, "x": 1}
    if version == "sharded":
        index = {"t": 0, "c": 0, "z": 1, "y": 1, "x": 1}
    index = tuple(index[name] for name in names)
    start = "c" + separator if version in ("0.5", "sharded") else ""
    (tmp_path / "0" / (start + separator.join(map(str, index)))).unlink()
    assert missing_chunks(volume, 1, 2) == [index]
    assert missing_chunks(volume, 0, 0) == []
    assert f"t 1, z 2: 1 chunk(s) are missing: {'/'.join(map(str, index))};" in problem(
        check_chunks, volume, 1, 2
    )


# Results.


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
    for wait in (0.0, 0.003, 0.01, 0.02):
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


def test_something_else_is_not_written_into(source, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert "no result; give another --output" in problem(create_output, source, {}, an_image())
    assert "no result; give another --output" in problem(create_output, tmp_path, {}, an_image())
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

    monkeypatch.setattr(store, "_open_kvstore", lambda url: Full())
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


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a service on this machine."""
    why = "a service like S3 on the loopback interface"
    server = pytest.importorskip("moto.server", reason=f"{why}: moto[server]")
    boto3 = pytest.importorskip("boto3", reason=f"{why}: boto3")
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    service.start()
    host, port = service.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    region = {"LocationConstraint": "eu-central-1"}
    boto3.client("s3", region_name="eu-central-1").create_bucket(
        Bucket="volumes", CreateBucketConfiguration=region
    )
    yield "s3://volumes"
    service.stop()


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
    tensorstore.KvStore.open(store._kvstore(f"{bucket}/other")).result()["a"] = b"1"
    assert "no result" in problem(create_output, f"{bucket}/other", {}, an_image())
