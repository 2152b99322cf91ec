"""Which channel, slice and time point each page of a TIFF file is, according to the file itself.

The metadata of OME and Micro-Manager may name other files of a set. None of them is opened.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile

from unet_jax.files.tiff_pages import all_pages

_MAX_XML_LETTERS = 2**26  # some 300 for each plane of a set


class Planes(NamedTuple):
    """The pages of one image.

    Attributes:
      axes: the axes they lie along, T, Z and C in some order; the last one varies fastest.
      shape: number of pages along each axis.
      pages: indices of the pages in the file, in this order.
      described: attributes of OME's element `Pixels`, such as PhysicalSizeX.
    """

    axes: str
    shape: tuple[int, ...]
    pages: list[int]
    described: dict[str, str]


# Axes and shape of all planes, (place in it, page) of those in the file, description.
_Placed = tuple[str, tuple[int, ...], list[tuple[int, int]], dict[str, str]]


def planes_of(tif: tifffile.TiffFile, pages: Sequence[int]) -> list[Planes] | None:
    """Assigns the pages of an OME or Micro-Manager file to their planes.

    Args:
      tif: the file.
      pages: indices of the pages to assign, all except those of reduced size.

    Returns:
      One entry for each image that has pages in this file, all with the same number of channels.
      Empty if the file does not say what its own pages are, or says something that cannot be true.
      None for other files.

    Raises:
      ValueError: the metadata are damaged, or count fewer or more pages than there are.
    """
    if tif.is_micromanager and (planes := _placed_by_micro_manager(tif, pages)):
        return planes
    return _placed_by_ome(tif, pages) if tif.pages.first.is_ome else None


def described_pixels(tif: tifffile.TiffFile, pages: Sequence[int]) -> dict[str, str]:
    """The attributes of OME's element `Pixels` for the image of a file, such as PhysicalSizeX.

    Those of the file's first image, or of the first image of its set if it is not known which
    images the file holds.

    Args:
      tif: the file.
      pages: as for `planes_of`.

    Raises:
      ValueError: as for `planes_of`.
    """
    if not tif.pages.first.is_ome:
        return {}
    planes = _placed_by_ome(tif, pages)
    if planes:
        return planes[0].described
    image = _read_xml(tif).find("{*}Image/{*}Pixels")
    return {} if image is None else dict(image.attrib)


def _read_xml(tif: tifffile.TiffFile) -> ElementTree.Element:
    xml = tif.pages.first.description
    if len(xml) > _MAX_XML_LETTERS or "<!DOCTYPE" in xml:
        raise ValueError("the OME metadata are too long or declare entities")
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise ValueError(f"the OME metadata are damaged, {error}") from error


def _placed_by_ome(tif: tifffile.TiffFile, pages: Sequence[int]) -> list[Planes]:
    root, samples = _read_xml(tif), all_pages(tif)[pages[0]].samplesperpixel
    images = [(image, _sizes(image, samples)) for image in root.findall("{*}Image/{*}Pixels")]
    planes = [math.prod(sizes.values()) for _, sizes in images]
    entries = [
        (number, data)
        for number, (image, _) in enumerate(images)
        for data in image.findall("{*}TiffData")
    ]
    own = _own(entries, root.get("UUID"), tif.filename)
    counts = [_count(data, min(planes[number], len(pages))) for number, data in own]
    if sum(map(abs, counts)) > len(tif.pages):
        raise ValueError(f"{sum(map(abs, counts))} pages")

    kept = set(pages)
    places: list[list[tuple[int, int]]] = [[] for _ in images]
    for (number, data), count in zip(own, counts, strict=True):
        place, page = 0, int(data.get("IFD", 0))
        for axis, size in images[number][1].items():
            first = int(data.get(f"First{axis}", 0))
            if not 0 <= first < size:
                return []
            place = place * size + first
        places[number] += [(place + k, page + k) for k in range(count) if page + k in kept]
    described = sum(map(len, places))
    if described == len(pages) and len(own) == len(entries):  # no other file holds what is missing
        described = sum(planes[number] for number, placed in enumerate(places) if placed)
    if own and described != len(pages):
        raise ValueError(f"{described} pages")
    return _grids(
        [
            ("".join(sizes), tuple(sizes.values()), placed, dict(image.attrib))
            for (image, sizes), placed in zip(images, places, strict=True)
            if placed
        ],
        pages,
    )


def _sizes(image: ElementTree.Element, samples: int) -> dict[str, int]:
    """Number of planes along each axis, the fastest-varying last."""
    axes = image.get("DimensionOrder", "")[:1:-1]
    if sorted(axes) != ["C", "T", "Z"]:
        raise ValueError(f"DimensionOrder {axes[::-1]}")
    sizes = {axis: int(image.get(f"Size{axis}", "")) for axis in axes}
    return sizes | {"C": sizes["C"] // samples}  # which are channels too


def _own(
    entries: list[tuple[int, ElementTree.Element]], uuid: str | None, name: str
) -> list[tuple[int, ElementTree.Element]]:
    """The planes in this file, which may have been renamed."""
    files = [data.find("{*}UUID") for _, data in entries]
    one_file = uuid is None and len({file.text for file in files if file is not None}) == 1
    for is_own in (
        lambda file: file.text == uuid,
        lambda file: file.get("FileName", "").lower() == name.lower(),
        lambda file: one_file,
    ):
        own = [
            entry
            for entry, file in zip(entries, files, strict=True)
            if file is None or is_own(file)
        ]
        if own:
            return own
    return []


def _count(data: ElementTree.Element, all_planes: int) -> int:
    for name in ("PlaneCount", "NumPlanes"):
        if name in data.attrib:
            return int(data.attrib[name])
    return 1 if "IFD" in data.attrib else all_planes


def _placed_by_micro_manager(tif: tifffile.TiffFile, pages: Sequence[int]) -> list[Planes]:
    index = (tif.micromanager_metadata or {}).get("IndexMap")
    numbers = {tif.pages[page].offset: page for page in pages}
    if index is None or sorted(index[:, 4].tolist()) != sorted(numbers):
        return []
    shape = tuple(1 + max(index[:, column].tolist()) for column in (2, 1, 0))
    places: dict[int, list[tuple[int, int]]] = {}
    for channel, z, time, position, offset in index.tolist():
        place = (time * shape[1] + z) * shape[2] + channel
        places.setdefault(position, []).append((place, numbers[offset]))
    return _grids([("TZC", shape, placed, {}) for placed in places.values()], pages)


def _grids(images: list[_Placed], pages: Sequence[int]) -> list[Planes]:
    """The images whose planes fill a grid, each page once; empty if one does not."""
    found = []
    for axes, shape, placed, described in images:
        page_at = dict(placed)
        order = sorted(page_at)
        if len(order) < len(placed) or not order[-1] < math.prod(shape) < 2**62:
            return []
        extent = tuple(len(np.unique(along)) for along in np.unravel_index(order, shape))
        if math.prod(extent) != len(order):
            return []
        found.append(Planes(axes, extent, [page_at[place] for place in order], described))
    used = sorted(page for planes in found for page in planes.pages)
    channels = {planes.shape[planes.axes.index("C")] for planes in found}
    return found if used == sorted(pages) and len(channels) == 1 else []
