"""Volumes in OME-Zarr: sources of version 0.4 and 0.5, results of 0.5, by TensorStore alone.

A block of a result is a shard, which is one stored object. It appears whole, and even where all
pixels are 0: a block that exists is finished.

A source may come from a stranger. What its metadata say is checked before TensorStore sees it, and
its layout is Zarr 2 or 3 and nothing else: TensorStore's own detection also opens databases that
may name files elsewhere. Chunks that are links are followed.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorstore

from unet_jax.errors import InputError, listed, one_line
from unet_jax.files.untrusted import MAX_BYTES, read_small

_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
# TensorStore makes room for a chunk as large as is declared.
_MAX_CHUNK_BYTES = 2**31
# Blocks are read and written once; a service that does not answer ends it in a minute.
_CONTEXT = tensorstore.Context(
    {
        "cache_pool": {"total_bytes_limit": 0},
        "data_copy_concurrency": {"limit": 1},
        "file_io_concurrency": {"limit": 4},
        "s3_request_retries": {"max_retries": 6},
    }
)


@dataclasses.dataclass(frozen=True)
class Axes:
    """What the dimensions of an array are.

    Attributes:
      names: a letter of "tczyx" for each.
      scale: the distance of two pixels along each, in its unit.
      units: such as "micrometer"; None = unknown.
      origin: where the first pixel lies, in the unit.
    """

    names: str
    scale: tuple[float, ...]
    units: tuple[str | None, ...]
    origin: tuple[float, ...]

    def of(self, names: str) -> "Axes":
        """The same for dimensions of these names; one that is not here has scale 1 and no unit."""
        places = [self.names.find(name) for name in names]
        return Axes(
            names,
            tuple(1.0 if i < 0 else self.scale[i] for i in places),
            tuple(None if i < 0 else self.units[i] for i in places),
            tuple(0.0 if i < 0 else self.origin[i] for i in places),
        )


@dataclasses.dataclass(frozen=True)
class Volume:
    """A source: an array of images, one for each time t and depth z.

    Attributes:
      url: of its group, a path or s3://BUCKET/PATH.
      array: in full resolution, real numbers; its dimensions are the axes.
      axes: see there.
    """

    url: str
    array: tensorstore.TensorStore
    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of t, z, rows, columns and channels; 1 for an axis that is not there."""
        sizes = dict(zip(self.axes.names, self.array.shape, strict=True))
        return tuple(sizes.get(name, 1) for name in "tzyxc")


@dataclasses.dataclass(frozen=True)
class NewImage:
    """An image or labels to create.

    Attributes:
      axes: see there.
      shape: of the full resolution, in the order of the axes.
      dtype: a name of NumPy's, such as "uint8".
      block: the side of a shard in y and x; it is 1 in t and z and holds all channels.
      chunk: the side of a chunk in a shard, a divisor of `block`; 1 in all other axes.
      levels: how many, each of half the resolution of the one before in y and x.
    """

    axes: Axes
    shape: tuple[int, ...]
    dtype: str
    block: int
    chunk: int
    levels: int = 1


@dataclasses.dataclass(frozen=True)
class Output:
    """The arrays of a result, each a tuple of levels, the full resolution first.

    Attributes:
      image: the image; no levels if there is none.
      labels: by name.
    """

    image: tuple[tensorstore.TensorStore, ...]
    labels: dict[str, tuple[tensorstore.TensorStore, ...]]


def open_volume(url: str | Path) -> Volume:
    """Opens the first image of an OME-Zarr group in full resolution.

    Args:
      url: a path, or s3://BUCKET/PATH with the service and the credentials in the environment:
        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.

    Raises:
      InputError: it is no OME-Zarr of version 0.4 or 0.5, or of axes or pixels not known here.
    """
    url = str(url).rstrip("/")
    driver, multiscale = _multiscale(url)
    try:
        path, axes = multiscale["datasets"][0]["path"], _axes(multiscale)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{url}: its metadata are not those of OME-Zarr 0.4 or 0.5 ({one_line(error)})."
        ) from error
    array = _open_source(url, path, driver)
    if len(array.shape) != len(axes.names) or 0 in array.shape:
        raise InputError(
            f"{url}: its array has shape {array.shape}, expected axes {', '.join(axes.names)}, "
            "none of them empty."
        )
    return Volume(url, array, axes)


def _multiscale(url: str) -> tuple[str, dict[str, Any]]:
    """TensorStore's driver for the group, and its first image's metadata."""
    driver, attributes = "zarr3", _read_json(url, "zarr.json")
    if attributes is None:
        driver, attributes = "zarr", _read_json(url, ".zattrs")
    else:
        for key in ("attributes", "ome"):
            attributes = attributes.get(key) if isinstance(attributes, dict) else None
    multiscales = attributes.get("multiscales") if isinstance(attributes, dict) else None
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        raise InputError(
            f"{url}: is no image in OME-Zarr, it has no multiscales; is there one in it, such as "
            f"{url}/0?"
        )
    return driver, multiscales[0]


def _axes(multiscale: dict[str, Any]) -> Axes:
    """The axes with what leads from the first dataset's pixels to their place."""
    names = [axis["name"] for axis in multiscale["axes"]]
    known = all(name in _TYPES for name in names) and len({*names}) == len(names)
    if not (known and {"y", "x"} <= {*names}):
        raise ValueError(
            f"axes {listed(names, 9)}, expected some of t, c, z, y, x, each once, y and x always"
        )
    units = [axis.get("unit") for axis in multiscale["axes"]]
    if not all(unit is None or isinstance(unit, str) for unit in units):
        raise ValueError(f"units {listed(units, 9)}")
    scale, origin = np.ones(len(names)), np.zeros(len(names))
    for level in (multiscale["datasets"][0], multiscale):
        for step in level.get("coordinateTransformations", []):
            if step["type"] in ("scale", "translation"):
                values = np.array(step[step["type"]], float)
                if values.shape != scale.shape or not np.isfinite(values).all():
                    raise ValueError(f"{step['type']} {listed(step[step['type']], 9)}")
                if step["type"] == "scale":
                    scale, origin = scale * values, origin * values
                else:
                    origin = origin + values
    if not (scale > 0).all():
        raise ValueError(f"scale {listed(scale.tolist(), 9)}, expected above 0")
    return Axes("".join(names), tuple(scale.tolist()), tuple(units), tuple(origin.tolist()))


def _open_source(url: str, path: Any, driver: str) -> tensorstore.TensorStore:
    inside = isinstance(path, str) and re.fullmatch(r"[^\\:\0]+", path)
    if not inside or {"", ".", ".."} & {*path.split("/")}:
        raise InputError(f"{url}: its array {one_line(repr(path))} is not in it.")
    if not _is_remote(url) and not Path(url, path).resolve().is_relative_to(Path(url).resolve()):
        raise InputError(f"{url}: its array {one_line(repr(path))} is a link to elsewhere.")
    place = f"{url}/{path}"
    name = "zarr.json" if driver == "zarr3" else ".zarray"
    if _read_json(place, name) is None:
        raise InputError(f"{url}: its array {one_line(repr(path))} is missing, there is no {name}.")
    try:
        spec = {"driver": driver, "kvstore": _kvstore(place)}
        array = tensorstore.open(spec, read=True, context=_CONTEXT).result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{place}: cannot be opened ({one_line(error)}).") from error
    dtype = array.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise InputError(f"{place}: has pixels of {array.dtype.name}, expected real numbers.")
    size = math.prod(_chunk_shape(array.chunk_layout.read_chunk)) * dtype.itemsize
    if size > _MAX_CHUNK_BYTES:
        raise InputError(
            f"{place}: has chunks of {size:,} bytes, expected at most {_MAX_CHUNK_BYTES:,}."
        )
    return array


def read(volume: Volume, t: int, z: int, rows: slice, columns: slice) -> np.ndarray:
    """A part of one image, [h, w, C] in the dtype of the source; both slices lie within it.

    Raises:
      InputError: a chunk is damaged or cannot be read.
    """
    part: dict[str, int | slice] = {"t": t, "z": z, "c": slice(None), "y": rows, "x": columns}
    names = volume.axes.names
    try:
        pixels = volume.array[tuple(part[name] for name in names)].read().result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(
            f"{volume.url}: t {t}, z {z}: cannot be read ({one_line(error)})."
        ) from error
    kept = [name for name in names if name in "yxc"]
    if "c" not in kept:
        pixels, kept = pixels[..., None], [*kept, "c"]
    return pixels.transpose([kept.index(name) for name in "yxc"])


def missing_chunks(volume: Volume, t: int, z: int) -> list[tuple[int, ...]]:
    """The indices of the stored chunks, or shards, of one image that are not there.

    TensorStore reads them as the fill value, as Zarr demands: a part that was never copied looks as
    one that is black.
    """
    names = volume.axes.names
    sides = _chunk_shape(volume.array.chunk_layout.write_chunk)
    grid: list[Sequence[int]] = [
        range(math.ceil(size / side)) for size, side in zip(volume.array.shape, sides, strict=True)
    ]
    for name, index in (("t", t), ("z", z)):
        if name in names:
            grid[names.index(name)] = [index // sides[names.index(name)]]
    before = min(names.index("y"), names.index("x"))
    stored: set[tuple[int, ...]] = set()
    for first in itertools.product(*grid[:before]):
        stored |= _stored(volume.array, first)
    return sorted(set(itertools.product(*grid)) - stored)


def check_chunks(volume: Volume, t: int, z: int) -> None:
    """Raises InputError, in one line, if chunks of an image are missing."""
    missing = missing_chunks(volume, t, z)
    if missing:
        names = ["/".join(map(str, index)) for index in missing]
        raise InputError(
            f"{volume.url}: t {t}, z {z}: {len(missing):,} chunk(s) are missing: "
            f"{listed(names, 3)}; copy them, or write them where they are all zeros."
        )


def finished(array: tensorstore.TensorStore) -> set[tuple[int, ...]]:
    """The indices of the blocks of a result that are there."""
    return _stored(array, ())


def _stored(array: tensorstore.TensorStore, first: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The indices of the stored objects of an array that begin with some numbers."""
    metadata = array.spec().to_json()["metadata"]
    start, separator = "", metadata.get("dimension_separator", ".")
    if encoding := metadata.get("chunk_key_encoding"):  # Zarr 3
        default = encoding["name"] == "default"
        separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
        start = f"c{separator}" if default else ""
    prefix = start + "".join(f"{index}{separator}" for index in first)
    keys = tensorstore.KvStore.KeyRange()
    if prefix:
        keys = tensorstore.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))
    # What TensorStore has not completed has other names.
    numbers = re.escape(separator).join([r"(\d+)"] * array.rank)
    pattern = re.compile((re.escape(start) + numbers).encode())
    store = cast(tensorstore.KvStore, array.kvstore)  # only other drivers have none
    found = map(pattern.fullmatch, store.list(keys).result())
    return {tuple(map(int, match.groups())) for match in found if match}


def check_writable(url: str | Path, size: int) -> None:
    """Raises InputError if an object of so many bytes cannot be written there."""
    url, name = str(url).rstrip("/"), f".probe-{uuid.uuid4().hex}"
    store = _open_kvstore(url)
    try:
        store[name] = bytes(size)
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be written to ({one_line(error)}).") from error
    finally:
        with contextlib.suppress(Exception):
            del store[name]


def create_output(
    url: str | Path,
    made_with: Mapping[str, Any],
    image: NewImage | None = None,
    labels: Mapping[str, NewImage] | None = None,
) -> Output:
    """Creates a group of OME-Zarr 0.5, or opens it where it is there; any number of times at once.

    Args:
      url: as of `open_volume`.
      made_with: what the result depends on, in JSON; kept under `unet_jax` in the attributes.
      image: of the group itself.
      labels: by name, in the subgroup "labels".

    Raises:
      InputError: something else is there, or the same made with something else.
    """
    url, labels = str(url).rstrip("/"), labels or {}
    attributes: dict[str, Any] = {"ome": {"version": "0.5"}, "unet_jax": dict(made_with)}
    if image:
        attributes["ome"] |= _described(image, url.rsplit("/", 1)[-1])
    _settle(url, attributes, is_root=True)
    if labels:
        _settle(f"{url}/labels", {"ome": {"version": "0.5", "labels": [*labels]}})
    for name, new in labels.items():
        ome = {"version": "0.5", "image-label": {"source": {"image": "../../"}}}
        _settle(f"{url}/labels/{name}", {"ome": ome | _described(new, name)})
    return Output(
        _create_levels(url, image) if image else (),
        {name: _create_levels(f"{url}/labels/{name}", new) for name, new in labels.items()},
    )


def _described(image: NewImage, name: str) -> dict[str, Any]:
    """The metadata `multiscales` of an image."""
    axes, datasets = image.axes, []
    for level in range(image.levels):
        steps: list[dict[str, Any]] = [
            {
                "type": "scale",
                "scale": [
                    size * (2**level if axis in "yx" else 1)
                    for axis, size in zip(axes.names, axes.scale, strict=True)
                ],
            }
        ]
        if any(axes.origin):
            steps.append({"type": "translation", "translation": [*axes.origin]})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    described = [
        {"name": axis, "type": _TYPES[axis]} | ({"unit": unit} if unit else {})
        for axis, unit in zip(axes.names, axes.units, strict=True)
    ]
    return {"multiscales": [{"name": name, "axes": described, "datasets": datasets}]}


def _settle(url: str, attributes: dict[str, Any], *, is_root: bool = False) -> None:
    """Writes the metadata of a group once; InputError if there are others."""
    attributes = json.loads(json.dumps(attributes))
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    store = _open_kvstore(url)
    try:
        before = store.read("zarr.json").result()
        if before.state == "missing":
            # Looked for first: of a result, `zarr.json` is what was written first.
            others = [key for key in store.list().result() if not _is_passing(key)]
            before = store.read("zarr.json").result()
            if before.state == "missing" and others and is_root:
                raise InputError(f"{url}: is there already, and no result; give another --output.")
            if before.state == "missing":  # else another process was faster
                content = json.dumps(group, indent=1).encode()
                store.write("zarr.json", content, if_equal=before.stamp.generation).result()
    except InputError:
        raise
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be written to ({one_line(error)}).") from error
    there = (_read_json(url, "zarr.json") or {}).get("attributes")
    if not isinstance(there, dict) or is_root and not isinstance(there.get("unet_jax"), dict):
        raise InputError(f"{url}: is there already, and no result; give another --output.")
    for part, wanted in attributes.items():
        found = there.get(part)
        found = found if isinstance(found, dict) else {}
        for key in [*wanted, *(found.keys() - wanted.keys())]:
            if found.get(key) != wanted.get(key):
                raise InputError(
                    f"{url}: holds results with {key} = {one_line(found.get(key))}, not "
                    f"{one_line(wanted.get(key))}; give another --output."
                )


def _is_passing(key: bytes) -> bool:
    return b"__lock" in key or key.startswith(b".probe-")


def _create_levels(url: str, image: NewImage) -> tuple[tensorstore.TensorStore, ...]:
    """The arrays of an image; those that are there are opened."""
    names, dtype = image.axes.names, np.dtype(image.dtype)
    sizes = dict(zip(names, image.shape, strict=True))
    shard = [{"y": image.block, "x": image.block, "c": sizes.get("c", 1)}.get(n, 1) for n in names]
    chunk = [image.chunk if name in "yx" else 1 for name in names]
    order = {"name": "bytes", "configuration": {"endian": "little"}}
    codecs: list[dict[str, Any]] = [
        order if dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": 1}},
        {"name": "crc32c"},
    ]
    if shard != chunk:
        inner = {
            "chunk_shape": chunk,
            "codecs": codecs,
            "index_codecs": [order, {"name": "crc32c"}],
        }
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    arrays = []
    for level in range(image.levels):
        shape = [-(-n // 2**level) if name in "yx" else n for name, n in sizes.items()]
        metadata = {
            "shape": shape,
            "data_type": dtype.name,
            "fill_value": False if dtype.kind == "b" else 0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "codecs": codecs,
            "dimension_names": [*names],
        }
        spec = {
            "driver": "zarr3",
            "kvstore": _kvstore(f"{url}/{level}"),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        try:
            opened = tensorstore.open(spec, open=True, create=True, context=_CONTEXT)
            arrays.append(opened.result())
        except Exception as error:  # TensorStore raises many kinds
            raise InputError(f"{url}/{level}: cannot be created ({one_line(error)}).") from error
    return tuple(arrays)


def count_levels(height: int, width: int, block: int) -> int:
    """How many levels there are until the last one fits in a block."""
    return 1 + max(0, math.ceil(math.log2(max(height, width) / block)))


def fill_block(
    below: tensorstore.TensorStore,
    level: tensorstore.TensorStore,
    names: str,
    index: tuple[int, ...],
    *,
    nearest: bool,
) -> None:
    """Writes one block of a level from the level below it, of twice the resolution.

    Args:
      below: all blocks of it under this one are finished.
      level: to write to.
      names: of the axes.
      index: of the block, as of `finished`.
      nearest: takes the first of four pixels, for labels and classes; else their mean.
    """
    shard = _chunk_shape(level.chunk_layout.write_chunk)
    starts = [i * side for i, side in zip(index, shard, strict=True)]
    stops = [min(a + n, m) for a, n, m in zip(starts, shard, level.shape, strict=True)]
    region = tuple(map(slice, starts, stops))
    rows, columns = names.index("y"), names.index("x")
    source = list(region)
    for axis in (rows, columns):
        source[axis] = slice(2 * starts[axis], min(2 * stops[axis], below.shape[axis]))
    pixels = below[tuple(source)].read().result()

    def quarter(row: int, column: int) -> np.ndarray:
        """Every second pixel; beyond the border there is the last one again."""
        taken = pixels
        for axis, first in ((rows, row), (columns, column)):
            places = np.arange(first, first + 2 * (stops[axis] - starts[axis]), 2)
            taken = taken.take(np.minimum(places, pixels.shape[axis] - 1), axis)
        return taken

    halved = quarter(0, 0)
    if not nearest:
        total = halved.astype(np.result_type(pixels.dtype, np.float32))
        for row, column in ((0, 1), (1, 0), (1, 1)):
            total += quarter(row, column)
        total /= 4
        halved = (total if pixels.dtype.kind == "f" else np.rint(total)).astype(pixels.dtype)
    level[region].write(halved).result()


def _chunk_shape(grid: tensorstore.ChunkLayout.Grid) -> tuple[int, ...]:
    """The shape of a chunk, which is known of Zarr; TensorStore's types allow for what is not."""
    return cast(tuple[int, ...], grid.shape)


def _is_remote(url: str) -> bool:
    return url.startswith("s3://")


def _kvstore(url: str) -> dict[str, Any]:
    """TensorStore's description of where the keys of a group or array are."""
    if not _is_remote(url):
        if re.match(r"[A-Za-z][\w+.-]+:/", url):
            raise InputError(f"{url}: expected a path or s3://BUCKET/PATH.")
        return {"driver": "file", "path": f"{Path(url).absolute().as_posix()}/"}
    bucket, _, path = url.removeprefix("s3://").partition("/")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    store = {
        "driver": "s3",
        "bucket": bucket,
        "path": f"{path}/" if path else "",
        "aws_region": region,
        # By default it looks through the home folder too.
        "aws_credentials": {"type": "environment"},
    }
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        store["endpoint"] = endpoint.rstrip("/")
    return store


def _open_kvstore(url: str) -> tensorstore.KvStore:
    try:
        return tensorstore.KvStore.open(_kvstore(url), context=_CONTEXT).result()
    except InputError:
        raise
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be opened ({one_line(error)}).") from error


def _read_json(url: str, name: str) -> dict[str, Any] | None:
    """The object in a small file of a group or array; None if it is not there."""
    store = _open_kvstore(url)
    try:
        if _is_remote(url):
            found = store.read(name).result()
            if found.state == "missing":
                return None
            content = found.value
            if len(content) > MAX_BYTES:
                raise ValueError(f"{len(content):,} bytes, expected at most {MAX_BYTES:,}")
        else:
            content = read_small(Path(url, name))
        values = json.loads(content)
        if not isinstance(values, dict):
            raise ValueError("no object of JSON")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}/{name}: cannot be read ({one_line(error)}).") from error
    return values
