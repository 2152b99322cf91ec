"""What the names of image files say."""

import os
import re
import unicodedata
from pathlib import Path

#: Of the names of image files.
SUFFIXES = (".tif", ".tiff", ".png", ".zarr")


def has_image_suffix(path: Path) -> bool:
    """Whether a file is a TIFF, PNG or OME-Zarr, judging by its name."""
    return path.suffix.lower() in SUFFIXES


def is_zarr(path: Path) -> bool:
    """Whether it is a Zarr directory, which is one image, judging by its name or its content."""
    return path.is_dir() and (
        path.suffix.lower() == ".zarr"
        or any(os.path.isfile(path / name) for name in ("zarr.json", ".zattrs"))
    )


def file_stem(path: Path) -> str:
    """The name of an image file without its suffix; .ome.tif counts as one suffix.

    Composed (NFC): macOS stores an "ä" in two parts, other systems in one.
    """
    stem = composed(path.stem)
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def example_stem(path: Path) -> str:
    """The name of the examples of an image file: "a" for a.ome.zarr, "a.ome" for a.ome.tif."""
    return file_stem(path) if path.suffix.lower() == ".zarr" else path.stem


def composed(name: str) -> str:
    """The name with each letter in one piece (NFC)."""
    return unicodedata.normalize("NFC", name)


def page_names(stem: str, pages: int) -> list[str]:
    """The names of the examples made from the pages of a file."""
    return [stem] if pages == 1 else [f"{stem} page {page}" for page in range(pages)]


def stem_and_page(name: str) -> tuple[str, int]:
    """The file's stem and the page, from 0, taken from an example's name."""
    match = re.fullmatch(r"(.*) page (\d+)", name)
    return (match[1], int(match[2])) if match else (name, 0)
