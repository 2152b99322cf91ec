"""Volumes in OME-Zarr of versions 0.4 and 0.5, read by TensorStore alone.

A source may come from a stranger. Its metadata are checked before TensorStore sees them, and its
layout must be Zarr 2 or 3: TensorStore's own detection also opens databases that may name files
elsewhere. Chunks that are links are followed.
"""

import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from unet_jax.errors import InputError, listed, one_line
from unet_jax.files.zarr_store import (
    CONTEXT,
    chunk_shape,
    is_remote,
    kvstore,
    read_json,
    stored_chunks,
)

logger = logging.getLogger("unet_jax")

AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
# TensorStore makes room for a chunk as large as is declared.
_MAX_CHUNK_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Axes:
    """The dimensions of an array.

    Attributes:
      names: a letter of "tczyx" for each.
      scale: the distance between two pixels along each, in its unit.
      units: such as "micrometer"; None = unknown.
      origin: the position of the first pixel, in the unit.
    """

    names: str
    scale: tuple[float, ...]
    units: tuple[str | None, ...]
    origin: tuple[float, ...]

    def of(self, names: str) -> "Axes":
        """The same for dimensions with these names; a new one has scale 1 and no unit."""
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
      axes: see `Axes`.
    """

    url: str
    array: tensorstore.TensorStore
    axes: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of t, z, rows, columns and channels; 1 for an axis that does not exist."""
        sizes = dict(zip(self.axes.names, self.array.shape, strict=True))
        return tuple(sizes.get(name, 1) for name in "tzyxc")

    def plane(self, t: int, z: int) -> "Plane":
        """One image."""
        return Plane(self, t, z)


@dataclasses.dataclass(frozen=True)
class Plane:
    """One image of a volume, which can be sliced like an array: only what is asked for is read."""

    volume: Volume
    t: int
    z: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, columns and channels."""
        return self.volume.shape[2:]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the source."""
        return self.volume.array.dtype.numpy_dtype

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        """A part of the image, see `read`."""
        return read(self.volume, self.t, self.z, *part)


def open_volume(url: str | Path) -> Volume:
    """Opens the first image of an OME-Zarr group in full resolution.

    Args:
      url: a path, or s3://BUCKET/PATH with the service and the credentials in the environment:
        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, AWS_REGION.

    Raises:
      InputError: it is not an OME-Zarr of version 0.4 or 0.5, or its axes or pixels are not
        supported.
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
    driver, attributes = "zarr3", read_json(url, "zarr.json")
    if attributes is None:
        driver, attributes = "zarr", read_json(url, ".zattrs")
    else:
        for key in ("attributes", "ome"):
            attributes = attributes.get(key) if isinstance(attributes, dict) else None
    multiscales = attributes.get("multiscales") if isinstance(attributes, dict) else None
    if not (isinstance(multiscales, list) and multiscales and isinstance(multiscales[0], dict)):
        if not is_remote(url) and not Path(url).is_dir():
            state = "is not an OME-Zarr folder" if Path(url).exists() else "does not exist"
            raise InputError(f"{url}: {state}.")
        raise InputError(
            f"{url}: is not an OME-Zarr image because it has no multiscales; does it contain one, "
            f"such as {url}/0?"
        )
    return driver, multiscales[0]


def _axes(multiscale: dict[str, Any]) -> Axes:
    """The axes, with the scale and origin of the first dataset's pixels."""
    names = [axis["name"] for axis in multiscale["axes"]]
    known = all(name in AXIS_TYPES for name in names) and len({*names}) == len(names)
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
        raise InputError(f"{url}: its array {one_line(repr(path))} is not a path inside it.")
    if not is_remote(url) and not Path(url, path).resolve().is_relative_to(Path(url).resolve()):
        raise InputError(f"{url}: its array {one_line(repr(path))} is a link to elsewhere.")
    place = f"{url}/{path}"
    name = "zarr.json" if driver == "zarr3" else ".zarray"
    if read_json(place, name) is None:
        raise InputError(f"{url}: its array {one_line(repr(path))} is missing; there is no {name}.")
    try:
        spec = {"driver": driver, "kvstore": kvstore(place)}
        array = tensorstore.open(spec, read=True, context=CONTEXT).result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{place}: cannot be opened ({one_line(error)}).") from error
    dtype = array.dtype.numpy_dtype
    if dtype.kind not in "buif":
        raise InputError(f"{place}: has pixels of {array.dtype.name}, expected real numbers.")
    size = math.prod(chunk_shape(array.chunk_layout.read_chunk)) * dtype.itemsize
    if size > _MAX_CHUNK_BYTES:
        raise InputError(
            f"{place}: has chunks of {size:,} bytes, expected at most {_MAX_CHUNK_BYTES:,}."
        )
    return array


def read(volume: Volume, t: int, z: int, rows: slice, columns: slice) -> np.ndarray:
    """A part of one image, [h, w, C] in the dtype of the source; both slices must lie within it.

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


def missing_chunks(
    volume: Volume, t: int | None = None, z: int | None = None
) -> list[tuple[int, ...]]:
    """The indices of the chunks, or shards, of one image or of all images that are missing.

    TensorStore reads them as the fill value, as Zarr demands: a part that was never copied looks
    like one that is black.
    """
    names = volume.axes.names
    sides = chunk_shape(volume.array.chunk_layout.write_chunk)
    grid: list[Sequence[int]] = [
        range(math.ceil(size / side)) for size, side in zip(volume.array.shape, sides, strict=True)
    ]
    for name, index in (("t", t), ("z", z)):
        if name in names and index is not None:
            grid[names.index(name)] = [index // sides[names.index(name)]]
    before = 0 if t is None and z is None else min(names.index("y"), names.index("x"))
    stored: set[tuple[int, ...]] = set()
    for first in itertools.product(*grid[:before]):
        stored |= stored_chunks(volume.array, first)
    return sorted(set(itertools.product(*grid)) - stored)


def warn_of_missing_chunks(volume: Volume) -> None:
    """Warns in one line of missing chunks; they may be chunks of zeros."""
    missing = missing_chunks(volume)
    if missing:
        names = ["/".join(map(str, index)) for index in missing]
        logger.warning(
            "%s: %d chunk(s) are missing and read as the fill value: %s",
            *(volume.url, len(missing), listed(names, 3)),
        )
