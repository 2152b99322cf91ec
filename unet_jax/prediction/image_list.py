"""The image files that a name, a folder or a pattern stands for."""

import glob
import logging
import shlex
from pathlib import Path

from unet_jax.errors import InputError, listed
from unet_jax.files.names import SUFFIXES, file_stem, has_image_suffix, is_zarr

logger = logging.getLogger("unet_jax")

_EXPECTED = f"expected {', '.join(SUFFIXES)}"


def image_files(images: str | Path, output: Path) -> list[Path]:
    """The image files by name; files left out because they are not images are named in a warning.

    Args:
      images: a file, a folder, or a pattern such as "data/*.tif".
      output: the folder for the results.

    Raises:
      InputError: there is no image; the results of two images would have the same names; images lie
        where the results go.
    """
    found = _found(images)
    files: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    for file in sorted(found, key=lambda file: (file.name, file)):
        is_image = is_zarr(file) or has_image_suffix(file) and file.is_file()
        (files if is_image else folders if file.is_dir() else others).append(file)
    if not files:
        raise _no_image(images, found, folders, others)
    if others:
        logger.warning(
            "%s: %d file(s) are left out, because only %s are read: %s",
            *(images, len(others), ", ".join(SUFFIXES), _first(others)),
        )
    problems = []
    by_name: dict[str, Path] = {}
    for file in files:
        other = by_name.setdefault(name_of(file), file)
        if other != file:
            problems.append(
                f"{file}: its results would have the same names as those of {other}; rename one, or"
                " predict them one after the other, each with its own --output"
            )
    if output.resolve() in {file.parent.resolve() for file in files}:
        problems.append(f"{output}: holds the images; give another --output for the results")
    if problems:
        raise InputError(*problems)
    return files


def name_of(file: Path) -> str:
    """The name by which an image's results are known; some disks ignore upper and lower case."""
    return file_stem(file).casefold()


def _found(images: str | Path) -> list[Path]:
    """The file itself, the content of the folder, or what the pattern finds."""
    path = Path(images)
    if path.is_file() or is_zarr(path):
        return [path]
    if path.is_dir():
        return _shown(path)
    # What exists is no pattern: the name of a folder may hold brackets.
    folder = next((f for f in path.parents if f.is_dir()), path.parent)
    pattern = str(path.relative_to(folder))
    # Nor is a bracket, where the pattern finds nothing with it as one.
    for tried in (pattern, pattern.replace("[", "[[]")):
        if found := glob.glob(tried, root_dir=folder, recursive=True):
            return [folder / name for name in found if not _in_zarr(folder, Path(name))]
    raise InputError(
        f"{images}: there is nothing with this name; {folder} holds"
        f" {_first(sorted(_shown(folder)))}; expected a file, a folder, or a pattern in quotes like"
        " 'data/*.tif'"
    )


def _in_zarr(folder: Path, name: Path) -> bool:
    """Whether it is part of an image or its metadata."""
    return any(is_zarr(folder / part) for part in name.parents if part != Path())


def _shown(folder: Path) -> list[Path]:
    """The content of a folder that is not hidden."""
    return [file for file in folder.iterdir() if not file.name.startswith(".")]


def _no_image(
    images: str | Path, found: list[Path], folders: list[Path], others: list[Path]
) -> InputError:
    """The error that says what there is instead, and what to do."""
    path, remedy = Path(images), "in Fiji: File > Save As > Tiff"
    if path in found:
        return InputError(
            f"{images}: is not a TIFF or PNG, judging by its name, {_EXPECTED}; {remedy}"
        )
    filled = [folder for folder in folders if any(map(has_image_suffix, folder.iterdir()))]
    if filled:
        inner = shlex.quote(f"{images}/*/*" if path.is_dir() else f"{images}/*")
        return InputError(
            f"{images}: holds no image itself, but its subfolder(s) {_first(filled)} do; to predict"
            f" these, give --images={inner}"
        )
    if others or folders:
        held = _first(others or folders)
        return InputError(f"{images}: holds {held}, but no TIFF or PNG, {_EXPECTED}; {remedy}")
    return InputError(f"{images}: is an empty folder, {_EXPECTED}")


def _first(files: list[Path]) -> str:
    return listed([file.name for file in files], 3) or "nothing"
