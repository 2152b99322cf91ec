"""Results in OME-Zarr 0.5, written by TensorStore alone.

A block of a result is a shard, which is one stored object. It appears in one step, even if all
pixels are 0: a block that exists is finished.
"""

import contextlib
import dataclasses
import json
import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from unet_jax.errors import InputError, one_line
from unet_jax.files.ome_zarr import AXIS_TYPES, Axes
from unet_jax.files.zarr_store import (
    CONTEXT,
    chunk_shape,
    kvstore,
    open_kvstore,
    read_json,
    stored_chunks,
)


@dataclasses.dataclass(frozen=True)
class NewImage:
    """An image or labels to create.

    Attributes:
      axes: see `Axes`.
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


def check_writable(url: str | Path, size: int) -> None:
    """Raises InputError if an object of `size` bytes cannot be written there."""
    url, name = str(url).rstrip("/"), f".probe-{uuid.uuid4().hex}"
    store = open_kvstore(url)
    try:
        store[name] = bytes(size)
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be written to ({one_line(error)}).") from error
    finally:
        with contextlib.suppress(Exception):
            del store[name]


def finished(array: tensorstore.TensorStore) -> set[tuple[int, ...]]:
    """The indices of the existing blocks of a result."""
    return stored_chunks(array, ())


def create_output(
    url: str | Path,
    made_with: Mapping[str, Any],
    image: NewImage | None = None,
    labels: Mapping[str, NewImage] | None = None,
) -> Output:
    """Creates an OME-Zarr 0.5 group, or opens an existing one; may be called concurrently.

    Args:
      url: as for `open_volume`.
      made_with: what the result depends on, in JSON; kept under `unet_jax` in the attributes.
      image: of the group itself.
      labels: by name, in the subgroup "labels".

    Raises:
      InputError: something else exists there, or a result that was made with something else.
    """
    url, labels = str(url).rstrip("/"), labels or {}
    attributes: dict[str, Any] = {"ome": {"version": "0.5"}, "unet_jax": dict(made_with)}
    if image:
        attributes["ome"] |= _described(image, "image")
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
        {"name": axis, "type": AXIS_TYPES[axis]} | ({"unit": unit} if unit else {})
        for axis, unit in zip(axes.names, axes.units, strict=True)
    ]
    return {"multiscales": [{"name": name, "axes": described, "datasets": datasets}]}


def _settle(url: str, attributes: dict[str, Any], *, is_root: bool = False) -> None:
    """Writes the metadata of a group once; InputError if it has different metadata."""
    attributes = json.loads(json.dumps(attributes))
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    store = open_kvstore(url)
    try:
        before = store.read("zarr.json").result()
        if before.state == "missing":
            # Looked for first: of a result, `zarr.json` is what was written first.
            others = [key for key in store.list().result() if not _is_passing(key)]
            before = store.read("zarr.json").result()
            if before.state == "missing" and others and is_root:
                raise InputError(
                    f"{url}: exists already and is not a result; give another --output."
                )
            if before.state == "missing":  # else another process was faster
                content = json.dumps(group, indent=1).encode()
                store.write("zarr.json", content, if_equal=before.stamp.generation).result()
    except InputError:
        raise
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{url}: cannot be written to ({one_line(error)}).") from error
    there = (read_json(url, "zarr.json") or {}).get("attributes")
    if not isinstance(there, dict) or is_root and not isinstance(there.get("unet_jax"), dict):
        raise InputError(f"{url}: exists already and is not a result; give another --output.")
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
    return b"__lock" in key or key.startswith((b".probe", b".lock", b".part-"))


def _create_levels(url: str, image: NewImage) -> tuple[tensorstore.TensorStore, ...]:
    """The arrays of an image; existing ones are opened."""
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
            "kvstore": kvstore(f"{url}/{level}"),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
            # What another run has deleted meanwhile is not black.
            "fill_missing_data_reads": False,
        }
        try:
            opened = tensorstore.open(spec, open=True, create=True, context=CONTEXT)
            arrays.append(opened.result())
        except Exception as error:  # TensorStore raises many kinds
            raise InputError(f"{url}/{level}: cannot be created ({one_line(error)}).") from error
    return tuple(arrays)


def count_levels(height: int, width: int, block: int) -> int:
    """The number of levels until the last one fits in a block."""
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
      below: the level below, in which all blocks under this one are finished.
      level: the level to write to.
      names: of the axes.
      index: of the block, as from `finished`.
      nearest: takes the first of four pixels, for labels and classes; otherwise their mean.
    """
    shard = chunk_shape(level.chunk_layout.write_chunk)
    starts = [i * side for i, side in zip(index, shard, strict=True)]
    stops = [min(a + n, m) for a, n, m in zip(starts, shard, level.shape, strict=True)]
    region = tuple(map(slice, starts, stops))
    rows, columns = names.index("y"), names.index("x")
    source = list(region)
    for axis in (rows, columns):
        source[axis] = slice(2 * starts[axis], min(2 * stops[axis], below.shape[axis]))
    try:
        pixels = below[tuple(source)].read().result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(
            f"A block of the next finer level cannot be read ({one_line(error)}); delete the "
            "damaged file and run the command again"
        ) from error

    def quarter(row: int, column: int) -> np.ndarray:
        """Every second pixel; beyond the border the last one is repeated."""
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
