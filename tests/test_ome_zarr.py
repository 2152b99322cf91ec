import json
import os
import shutil

import numpy as np
import pytest
import tensorstore

from unet_jax import InputError
from unet_jax.files.ome_zarr import (
    Axes,
    missing_chunks,
    open_volume,
    read,
    warn_of_missing_chunks,
)

RNG = np.random.default_rng(0)
UNITS = {"t": "second", "z": "micrometer", "y": "micrometer", "x": "micrometer"}
SIZES = {"t": 2, "c": 3, "z": 4, "y": 11, "x": 13}
CHUNKS = {"t": 1, "c": 2, "z": 1, "y": 4, "x": 6}


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
        plane = volume.plane(t, z)
        assert plane.shape == whole[t, z].shape and plane.dtype == np.uint16
        np.testing.assert_array_equal(plane[3:9, 2:13], part)
        np.testing.assert_array_equal(plane[:, 5:], whole[t, z, :, 5:])


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
        f"it has no multiscales; does it contain one, such as {tmp_path}/0?"
    )
    assert problem(open_volume, tmp_path / "none") == f"{tmp_path}/none: does not exist."
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
    "missing": (multiscale("zyx", "1"), "its array '1' is missing; there is no zarr.json"),
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
    assert f"its array {path!r} is not a path inside it" in problem(open_volume, source)
    write_group(source, "0.5", multiscale("zyx", "a/0"))
    open_volume(source)


def test_a_link_to_elsewhere_is_not_followed(source):
    make_source(source.parent / "other")
    (source / "1").symlink_to(source.parent / "other" / "0")
    write_group(source, "0.5", multiscale("zyx", "1"))
    assert "is a link to elsewhere" in problem(open_volume, source)
    (source / "zarr.json").unlink()
    (source / "zarr.json").symlink_to(source.parent / "other" / "zarr.json")
    assert "not a regular file" in problem(open_volume, source)


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
    assert "t 0, z 1: cannot be read" in problem(lambda: volume.plane(0, 1)[:4, :6])


# Chunks that are missing.


@pytest.mark.parametrize("separator", "./")
@pytest.mark.parametrize("version", ["0.4", "v2 keys", "0.5", "sharded"])
@pytest.mark.parametrize("names", ["tczyx", "yxz"])
def test_missing_chunks_are_those_of_the_image(caplog, tmp_path, separator, version, names):
    keys = {"chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}}}
    if version == "0.4":
        keys = {"dimension_separator": separator}
    elif version == "v2 keys":
        keys["chunk_key_encoding"]["name"] = "v2"
    make_source(tmp_path, "0.5" if version == "v2 keys" else version, names, **keys)
    volume = open_volume(tmp_path)
    warn_of_missing_chunks(volume)
    assert not caplog.messages
    assert missing_chunks(volume, 1, 2) == []
    index = {"t": 1, "c": 1, "z": 2, "y": 2, "x": 1}
    if version == "sharded":
        index = {"t": 0, "c": 0, "z": 1, "y": 1, "x": 1}
    index = tuple(index[name] for name in names)
    start = "c" + separator if version in ("0.5", "sharded") else ""
    (tmp_path / "0" / (start + separator.join(map(str, index)))).unlink()
    assert missing_chunks(volume, 1, 2) == [index]
    assert missing_chunks(volume, 0, 0) == []
    warn_of_missing_chunks(volume)
    (line,) = caplog.messages
    assert line == f"{tmp_path}: 1 chunk(s) are missing and read as the fill value: " + (
        "/".join(map(str, index))
    )
