"""Axes and pixel size of an image, and result files that keep them and that Fiji opens."""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tifffile
from numpy.typing import DTypeLike

from unet_jax.errors import listed, one_line
from unet_jax.files.decoding import quiet
from unet_jax.files.names import is_zarr
from unet_jax.files.ome_zarr import Volume
from unet_jax.files.output import complete
from unet_jax.files.planes import described_pixels
from unet_jax.files.tiff import open_tiff, page_series
from unet_jax.files.tiff_pages import all_pages, full_pages, orientation
from unet_jax.files.zarr_image import open_small

logger = logging.getLogger("unet_jax")

# Beyond, ImageJ's own format ends, and OME's is written.
_MAX_IMAGEJ_BYTES = 2**32 - 2**20
# Beyond, ImageJ's 32 bits, which are of float32, leave out whole numbers.
_MAX_IMAGEJ_NUMBER = 2**24
# As files spell them.
_UNITS = {
    **dict.fromkeys(("meter", "metre"), "m"),
    **dict.fromkeys(("centimeter", "centimetre"), "cm"),
    **dict.fromkeys(("millimeter", "millimetre"), "mm"),
    **dict.fromkeys(("\u00b5m", "\u03bcm", "\u00b5", "\u03bc"), "um"),
    **dict.fromkeys(("micron", "microns", "micrometer", "micrometre"), "um"),
    **dict.fromkeys(("nanometer", "nanometre"), "nm"),
    **dict.fromkeys(("angstrom", "\u212b"), "\u00c5"),
    "in": "inch",
}
_OME_UNITS = {"um": "\u00b5m", "inch": "in"}
_MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "\u00c5": 1e-4}
_SECONDS = {
    **dict.fromkeys(("h", "hour"), 3600.0),
    **dict.fromkeys(("min", "minute"), 60.0),
    **dict.fromkeys(("s", "sec", "second"), 1.0),
    **dict.fromkeys(("ms", "msec", "millisecond"), 1e-3),
}
# Per centimetre; a lower resolution without a description is that of a printed page.
_LEAST_RESOLUTION = 500
_RESOLUTION_UNITS: dict[int, str] = {
    tifffile.RESUNIT.INCH: "inch",
    tifffile.RESUNIT.CENTIMETER: "cm",
}


class Frame(NamedTuple):
    """How the pages of an image file are arranged, and how large its pixels are.

    Attributes:
      axes: of the pages as `read_image` gives them: "" for a single page, "Z", "T" or "TZ".
      shape: number of pages along each axis.
      pixel_size: width and height of a pixel in `unit`; None = unknown.
      spacing: from one Z to the next, in `unit`; None = unknown.
      interval: from one T to the next, in seconds; None = unknown.
      unit: such as "um", "cm" or "inch".
      channels: planes of each page along an axis of their own; the samples of RGB are one plane.
    """

    axes: str = ""
    shape: tuple[int, ...] = ()
    pixel_size: tuple[float, float] | None = None
    spacing: float | None = None
    interval: float | None = None
    unit: str = ""
    channels: int = 1

    def place(self, page: int) -> dict[str, int]:
        """The position of a page along each of the axes, by the axis's letter."""
        if not self.axes:
            return {}
        return dict(zip(self.axes, map(int, np.unravel_index(page, self.shape)), strict=True))

    def micrometres(self) -> tuple[float, float] | None:
        """Width and height of a pixel; None if they are unknown or are those of a printed page."""
        if self.pixel_size is None or self.unit not in _MICROMETRES:
            return None
        width, height = self.pixel_size
        return width * _MICROMETRES[self.unit], height * _MICROMETRES[self.unit]


def read_frame(path: Path, pages: int) -> Frame:
    """The frame of a file in which `read_image` has found this many pages.

    Pages along axes other than Z and T are treated as Z. A pixel size that cannot be understood is
    left out, with a warning.
    """
    stack = Frame("Z", (pages,)) if pages > 1 else Frame()
    try:
        if is_zarr(path):
            return volume_frame(open_small(path))
        with quiet(), open_tiff(path) as tif:
            full = full_pages(path, tif)
            series = page_series(path, tif, full)
            sizes = {
                axis: size
                for axis, size in zip(series[0].axes, series[0].shape, strict=True)
                if axis not in "YXCS" and size > 1
            }
            if len(series) == 1 and set(sizes) <= {"Z", "T"}:
                axes = "".join(sorted(sizes))
                stack = Frame(axes, tuple(sizes[axis] for axis in axes))
            channels = dict(zip(series[0].axes, series[0].shape, strict=True)).get("C", 1)
            stack = stack._replace(channels=channels)
            return _calibrated(stack, tif, full)
    except tifffile.TiffFileError:  # a PNG file
        return stack
    except Exception as error:  # what a file says of itself may be anything
        logger.warning("%s: its pixel size cannot be read (%s)", path, one_line(error))
        return stack


def volume_frame(volume: Volume) -> Frame:
    """The frame of the images of a volume."""
    sizes = {axis: size for axis, size in zip("TZ", volume.shape[:2], strict=True) if size > 1}
    axes = volume.axes.of("xyzt")
    known = [size if unit else None for size, unit in zip(axes.scale, axes.units, strict=True)]
    frame = Frame("".join(sizes), tuple(sizes.values()), channels=volume.shape[4])
    return _with_sizes(frame, known, axes.units)


def _calibrated(frame: Frame, tif: tifffile.TiffFile, pages: list[int]) -> Frame:
    page = all_pages(tif)[pages[0]]
    if pixels := described_pixels(tif, pages):
        found: list[Any] = [pixels.get(f"PhysicalSize{axis}") for axis in "XYZ"]
        found.append(pixels.get("TimeIncrement"))
        units = [pixels.get(f"PhysicalSize{axis}Unit", "um") for axis in "XYZ"]
        units.append(pixels.get("TimeIncrementUnit", "s"))
    else:
        described = tif.imagej_metadata or {}
        unit = described.get("unit", _RESOLUTION_UNITS.get(page.resolutionunit, ""))
        known = "XResolution" in page.tags and unit not in ("", "pixel")
        if not described and unit == "cm":
            known = known and min(page.resolution) >= _LEAST_RESOLUTION
        found = [1 / resolution if known else None for resolution in page.resolution]
        found += [described.get("spacing"), described.get("finterval") or None]
        units = [unit, described.get("yunit", unit), described.get("zunit", unit)]
        units.append(described.get("tunit", "s"))
    sizes = [None if value is None else float(value) for value in found]
    if not all(0 < size < math.inf for size in sizes if size is not None):
        raise ValueError(f"found {listed(sizes, 4)}")
    frame = _with_sizes(frame, sizes, units)
    if frame.pixel_size and orientation(page) > 4:  # rows and columns are exchanged
        frame = frame._replace(pixel_size=frame.pixel_size[::-1])
    return frame


def _with_sizes(frame: Frame, sizes: Sequence[float | None], units: Sequence[Any]) -> Frame:
    """The frame with the sizes along x, y, z and t, the lengths in the unit of x."""
    of_x, *others, clock = map(_usual, units)
    x, interval = sizes[0], _converted(sizes[3], clock, "s", _SECONDS)
    y, z = (_converted(sizes[i], unit, of_x, _MICROMETRES) for i, unit in enumerate(others, 1))
    return frame._replace(
        pixel_size=(x, y) if x and y else None, spacing=z, interval=interval, unit=of_x
    )


def _usual(unit: Any) -> str:
    """The spelling of a unit in a `Frame`."""
    if not unit:
        return ""
    # ImageJ writes other letters than those of ASCII as \u00B5.
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), one_line(unit))
    return _UNITS.get(text, text)


def _converted(
    size: float | None, unit: str, wanted: str, known: Mapping[str, float]
) -> float | None:
    """A size in another unit; None if one of the two is not known."""
    if size is None or unit == wanted:
        return size
    return size * known[unit] / known[wanted] if {unit, wanted} <= {*known} else None


@contextlib.contextmanager
def result_file(
    file: Path,
    frame: Frame,
    size: tuple[int, int],
    dtype: DTypeLike,
    *,
    channels: Sequence[str] = (),
    largest: int = 1,
    colours: np.ndarray | None = None,
) -> Iterator[list[np.ndarray]]:
    """A TIFF file of an image's pages, which appears complete at the end of the block.

    It is an ImageJ hyperstack, or an OME-TIFF if it is too large or too narrow for one. The arrays
    lie in the file: what is written to them takes no memory.

    Args:
      file: to write, .tif.
      frame: of the image.
      size: of a page, (height, width).
      dtype: of the pixels: uint8, uint16, float32, or uint32, which ImageJ lacks: there it is
        stored as float32.
      channels: their names; empty for pages without a channel axis.
      largest: the pixel value that is shown as white, or in the last colour; for uint32, no pixel
        may exceed it.
      colours: uint8 [largest + 1, 3], of each pixel value; by default grey.

    Yields:
      A list with an array of zeros to fill for each page, [H, W, channels] or [H, W]; it is emptied
      at the end of the block.

    Raises:
      OSError: there is no room for it.
      ValueError: the format cannot hold whole numbers up to `largest`.
    """
    shape = [*frame.shape, *[len(channels)] * bool(channels), *size]
    axes = frame.axes + "C" * bool(channels) + "YX"
    # Of a single column, tifffile makes samples in ImageJ's format.
    is_ome = math.prod(shape) * np.dtype(dtype).itemsize > _MAX_IMAGEJ_BYTES or size[1] == 1
    if np.dtype(dtype) == np.uint32 and not is_ome:
        dtype = np.float32
        if largest > _MAX_IMAGEJ_NUMBER:
            raise ValueError(
                f"numbers up to {largest:,}, expected at most {_MAX_IMAGEJ_NUMBER:,} in ImageJ's "
                "format; cut the image into parts"
            )
    if is_ome:
        options = _ome(axes, frame, channels)
    else:
        options = _imagej(axes, frame, channels, largest, colours)
    with complete(file) as unfinished:
        stored = tifffile.memmap(
            unfinished, shape=tuple(shape), dtype=dtype, photometric="minisblack", **options
        )
        with unfinished.open("rb+") as opened:
            reserve(opened, unfinished.stat().st_size)
        pages = np.moveaxis(stored, -3, -1) if channels else stored
        arrays = [pages[index] for index in np.ndindex(*frame.shape)]
        try:
            yield arrays
            stored.flush()
        finally:
            arrays.clear()
            del stored, pages  # Windows renames no file that is still mapped


def reserve(file: BinaryIO, size: int) -> None:
    """Makes a file this many bytes long, with room on the disk for all of them.

    Otherwise a full disk would end the process when an array in the file is written to.

    Raises:
      OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _imagej(
    axes: str,
    frame: Frame,
    channels: Sequence[str],
    largest: int,
    colours: np.ndarray | None,
) -> dict[str, Any]:
    """The options with which tifffile writes it as ImageJ does."""
    pages = math.prod(frame.shape)
    metadata: dict[str, Any] = {
        "axes": axes,
        "unit": re.sub(r"[^ -~]", lambda letter: f"\\u{ord(letter[0]):04X}", frame.unit),
        "spacing": frame.spacing,
        "finterval": frame.interval,
        "min": 0.0,
        "max": float(largest),
        "mode": "grayscale" if channels else None,
        "Labels": [*channels] * pages if channels else None,
    }
    if colours is not None:
        metadata["LUTs"] = [colours[np.arange(256) * len(colours) // 256].T.copy()]
    options: dict[str, Any] = {
        "imagej": True,
        "metadata": {name: value for name, value in metadata.items() if value not in (None, "")},
    }
    if frame.pixel_size is not None:
        options["resolution"] = tuple(1 / size for size in frame.pixel_size)
    return options


def _ome(axes: str, frame: Frame, channels: Sequence[str]) -> dict[str, Any]:
    """The options with which tifffile writes it as OME-TIFF."""
    unit = _OME_UNITS.get(frame.unit, frame.unit)
    metadata: dict[str, Any] = {"axes": axes}
    sizes = dict(zip("XY", frame.pixel_size or (), strict=False)) | {"Z": frame.spacing}
    for axis, size in sizes.items():
        if size is not None:
            metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    if frame.interval:
        metadata["TimeIncrement"] = frame.interval
    if channels:
        metadata["Channel"] = {"Name": [*channels]}
    return {"ome": True, "bigtiff": True, "metadata": metadata}
