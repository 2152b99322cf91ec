"""The record of a folder of results: what they were made with, and from which images."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet_jax.errors import InputError
from unet_jax.files.names import file_stem
from unet_jax.files.output import complete, lock, probe
from unet_jax.files.zarr_image import open_small, stored_files
from unet_jax.prediction.image_list import name_of
from unet_jax.prediction.results import KINDS, existing_files

# Made of the results of all images together, from one of these kinds.
_OF_ALL = {"table": ("table.csv",), "uncertainty": ("rank.csv", "rank.html")}


@dataclasses.dataclass(frozen=True)
class Row:
    """The results that exist for one image.

    Attributes:
      name: of the image file, without its suffix.
      sha256: of the image file.
      kinds: of the results that exist, from `KINDS`.
    """

    name: str
    sha256: str
    kinds: list[str]


class ResultRecord:
    """The file predictions.jsonl in a folder, which is locked against other processes.

    Its first line says what the results were made with, and holds the names of all images that have
    been started. Every other line is the `Row` of an image; the last one of each image counts.
    """

    def __init__(
        self, output: Path, made_with: dict[str, Any], images: Sequence[Path], overwrite: bool
    ):
        """Creates the folder, or continues in it.

        Raises:
          InputError: it holds results that were made with something else, or are not in the record,
            and may not be replaced; it cannot be written to; the record is damaged.
        """
        probe(output, 0)
        lock(output)
        self._file = output / "predictions.jsonl"
        before, lines = made_with | {"images": []}, []
        if self._file.exists():
            before, *lines = _read(self._file)
            lines = lines if "images" in before else []
        problem = _difference(before, made_with)
        if problem and not overwrite:
            raise InputError(
                f"{output}: holds results {problem}; give another --output, or use --overwrite."
            )
        # Results that were made with something else are not known any more.
        begun = set() if problem else set(before["images"])
        self._rows = {row.name.casefold(): row for row in (Row(**line) for line in lines)}
        names = {name_of(image) for image in images}
        if overwrite:
            for name in {*self._rows} if problem else names & {*self._rows}:
                for kind in self._rows.pop(name).kinds:
                    for file in _OF_ALL.get(kind, ()):
                        (output / file).unlink(missing_ok=True)
        else:
            _check_none_there(output, names - begun)
        with complete(self._file) as unfinished:
            first = _line(made_with | {"images": sorted(begun | names)})
            rest = map(_line, map(dataclasses.asdict, self._rows.values()))
            unfinished.write_text("".join([first, *rest]), encoding="utf-8")

    def row(self, image: Path) -> Row:
        """The row of an image file, without kinds if it has no results.

        Raises:
          InputError: there are results of another image with this name.
        """
        digest = _sha256(image)
        known = self._rows.get(name_of(image))
        if known and known.sha256 != digest:
            raise InputError(
                f"{image}: {self._file.parent} holds the results of another image with this name; "
                "give another --output, or use --overwrite."
            )
        return Row(file_stem(image), digest, self._kinds(known) if known else [])

    def clear(self, image: Path) -> None:
        """Removes what there is of an image that is to be replaced."""
        for kind in KINDS:
            for file in existing_files(self._file.parent, file_stem(image), kind):
                file.unlink()

    def files(self, kind: str) -> list[Path]:
        """Those of this kind of result, of all images, also of earlier calls, by name."""
        names = sorted(row.name for row in self._rows.values() if kind in row.kinds)
        return [file for name in names for file in existing_files(self._file.parent, name, kind)]

    def _kinds(self, row: Row) -> list[str]:
        """Those whose files have not been removed since."""
        return [kind for kind in row.kinds if existing_files(self._file.parent, row.name, kind)]

    def add(self, row: Row) -> None:
        """Notes the results that an image has now."""
        self._rows[row.name.casefold()] = row
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(_line(dataclasses.asdict(row)))


def _sha256(image: Path) -> str:
    """The digest of the file, or of the keys and contents of an OME-Zarr."""
    if image.is_file():
        with image.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    open_small(image)  # before all of it is read
    digest = hashlib.sha256()
    for file in stored_files(image):
        digest.update(f"{_sha256(file)} {file.relative_to(image).as_posix()}\n".encode())
    return digest.hexdigest()


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _read(file: Path) -> list[dict[str, Any]]:
    """The content of the lines; the first one is never missing."""
    lines = file.read_text(encoding="utf-8").splitlines() or [""]
    read: list[dict[str, Any]] = []
    for line in lines:
        try:
            read.append(json.loads(line))
        except ValueError as error:
            if not read:  # else it was cut off, by a kill or a full disk
                raise InputError(f"{file}: is damaged; give another --output.") from error
    return read


def _difference(before: dict[str, Any], made_with: dict[str, Any]) -> str | None:
    """What the results of a record were made with, if that differs from `made_with`."""
    if "images" not in before:
        return "of an earlier version, which did not record their images"
    for key, value in made_with.items():
        if before.get(key) != value:
            return f"with {key} = {before.get(key)}, not {value}"
    return None


def _check_none_there(output: Path, names: set[str]) -> None:
    """Raises InputError for a result of an image with these names, whatever made it."""
    results = {f"{name}_{kind}" for name in names for kind in KINDS}
    for present in sorted(output.iterdir()):
        # The overlays of several pages have a number each.
        if re.sub(r"_overlay_\d+$", "_overlay", name_of(present)) in results:
            raise InputError(f"{present}: exists already; use --overwrite to replace it.")
