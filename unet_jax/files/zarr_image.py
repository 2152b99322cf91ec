"""An OME-Zarr that is small enough to be read like an image file."""

import math
from pathlib import Path

import numpy as np
import tensorstore

from unet_jax.errors import InputError, one_line
from unet_jax.files.decoding import MAX_BYTES, notice
from unet_jax.files.ome_zarr import Volume, missing_chunks, open_volume, warn_of_missing_chunks
from unet_jax.files.zarr_store import chunk_shape

# Each takes time and memory, whether it is there or not.
_MAX_CHUNKS = 2**22


def open_small(path: Path) -> Volume:
    """Opens it; InputError if it is not an OME-Zarr, or larger than an image file may be."""
    volume = open_volume(path)
    size = math.prod(volume.shape) * volume.array.dtype.numpy_dtype.itemsize
    sides = chunk_shape(volume.array.chunk_layout.read_chunk)
    chunks = math.prod(map(math.ceil, np.divide(volume.array.shape, sides)))
    if size > MAX_BYTES or chunks > _MAX_CHUNKS:
        raise InputError(
            f"{path}: has {size:,} bytes of pixels in {chunks:,} chunks, expected at most "
            f"{MAX_BYTES:,} bytes in {_MAX_CHUNKS:,} chunks; predict.py --output=NAME.ome.zarr "
            "segments it block by block"
        )
    return volume


def decode_zarr(path: Path, is_mask: bool) -> np.ndarray:
    """Returns the pixels [pages, H, W, C], the pages in the order of t, then z."""
    volume = open_small(path)
    for part in path.rglob("*"):
        if not (part.is_file() or part.is_dir()):  # to open a pipe would take for ever
            raise InputError(f"{part}: is not a regular file")
    if not is_mask:
        warn_of_missing_chunks(volume)
    elif missing_chunks(volume):  # which is usual where there is nothing
        notice(path.parent, "some masks lack chunks, which are read as the fill value")
    names = volume.axes.names
    order = [names.index(name) for name in "tzyxc" if name in names]
    try:
        pixels = volume.array[tensorstore.d[order].transpose[:]].read(order="C").result()
    except Exception as error:  # TensorStore raises many kinds
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    pixels = pixels.reshape(-1, *volume.shape[2:])
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def stored_files(path: Path) -> list[Path]:
    """The files that an image consists of: itself, or those in an OME-Zarr directory, sorted."""
    if path.is_file():
        return [path]
    return sorted(filter(Path.is_file, path.rglob("*")), key=Path.as_posix)
