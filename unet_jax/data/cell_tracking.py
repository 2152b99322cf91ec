"""Data sets of the Cell Tracking Challenge: sequences of images, some frames with their cells.

    01/t000.tif ...             the images of the first sequence
    01_GT/SEG/man_seg002.tif    gold truth of some frames: 0 = background, n = cell n
    01_ST/SEG/man_seg000.tif    silver truth, computed from many programs' results

Free for work related to the challenge (celltrackingchallenge.net); cite Maska et al. 2023
(doi 10.1038/s41592-023-01879-y). The images of DIC-C2DH-HeLa are by G. van Cappellen, those of
PhC-C2DH-U373 by S. Kumar.
"""

import os
import re
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pooch
from scipy.ndimage import distance_transform_edt

from unet_jax.data.download import download
from unet_jax.errors import InputError, Problems, one_line
from unet_jax.example import IGNORED, Example
from unet_jax.files.images import check_grey_values, read_image

ADDRESS = "https://data.celltrackingchallenge.net/training-datasets/{}.zip"
#: Published for the zip files of these data sets.
SHA256 = {
    "DIC-C2DH-HeLa": "832fed2d05bb7488cf9c51a2994b75f8f3f53b3c3098856211f2d39023c34e1a",
    "PhC-C2DH-U373": "b18185c18fce54e8eeb93e4bbb9b201d757add9409bbf2283b8114185a11bc9e",
}
_MAX_BYTES = 2**30  # of an archive; they hold 37 and 38 MB
_TRUTHS = {"gold": "GT", "silver": "ST"}

#: Pixels; what is farther from the annotated cells of a partly annotated frame is ignored.
ANNOTATED_REACH = 20.0


def find_dataset(dataset: str) -> Path:
    """The folder of a data set, downloaded on first use.

    Args:
      dataset: "DIC-C2DH-HeLa" or "PhC-C2DH-U373", looked for in ``$UNET_JAX_DATA/ctc``, then in
        the user's cache folder; or the path of a folder in the challenge's layout.

    Raises:
      InputError: there is no such folder, or the download fails or is not what was published.
    """
    if dataset not in SHA256:
        if not Path(dataset).is_dir():
            known = ", ".join(SHA256)
            raise InputError(f"{dataset}: is neither a folder nor one of the known sets, {known}.")
        return Path(dataset)
    own = os.environ.get("UNET_JAX_DATA")
    if own and (Path(own) / "ctc" / dataset).is_dir():
        return Path(own) / "ctc" / dataset
    folder = pooch.os_cache("unet_jax") / "ctc" / dataset
    if not folder.is_dir():
        _download(dataset, folder)
    return folder


def read_sequence(
    dataset: Path, sequence: str, *, truth: str, partly_annotated: tuple[str, ...]
) -> list[Example]:
    """Reads the annotated frames of one sequence; those without a cell are left out.

    Args:
      dataset: a folder in the challenge's layout.
      sequence: such as "01".
      truth: "gold" or "silver".
      partly_annotated: names of the frames in which not every cell is annotated; ("all",) = every
        frame. Their background farther than `ANNOTATED_REACH` from annotated cells is ``IGNORED``.

    Returns:
      Examples in order of time, with names like "01/002"; class 1 = cell, instances = the cells'
      numbers.

    Raises:
      InputError: a folder is missing or holds no frame with a cell; a frame has no image or one of
        another size, or cannot be read, with a line for each.
    """
    if truth not in _TRUTHS:
        raise InputError(f"config.data.truth must be gold or silver, not {truth!r}.")
    folder = dataset / f"{sequence}_{_TRUTHS[truth]}" / "SEG"
    problems = Problems()
    images = _numbered(dataset / sequence, "t", problems)
    masks = _numbered(folder, "man_seg", problems)
    if not (images and masks):
        problems.raise_all()
    known = {"all", *(f"{sequence}/{number}" for number in masks)}
    for name in partly_annotated:
        with problems.collected():
            if name not in known and (name.startswith(f"{sequence}/") or "/" not in name):
                raise InputError(
                    f"config.data.partly_annotated holds {name!r}, but {folder} has no such frame."
                )
    examples = []
    for number, path in masks.items():
        with problems.collected():
            if number not in images:
                raise InputError(f"{path}: has no image t{number}.tif in {dataset / sequence}.")
            image, cells = _read_frame(images[number], path)
            if cells.any():
                name = f"{sequence}/{number}"
                partly = "all" in partly_annotated or name in partly_annotated
                examples.append(Example(name, image, _labels(cells, partly), cells))
    problems.raise_all()
    if not examples:
        raise InputError(f"{folder}: holds no frame with an annotated cell.")
    return examples


def _numbered(folder: Path, prefix: str, problems: Problems) -> dict[str, Path]:
    """Files of a folder by the number after the prefix, ascending; a problem if there are none."""
    files = {}
    with problems.collected():
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder; expected the challenge's layout.")
        names = re.compile(rf"{prefix}(\d+)\.tif")
        matches = {path: names.fullmatch(path.name) for path in folder.iterdir()}
        files = {match[1]: path for path, match in matches.items() if match}
        if not files:
            raise InputError(f"{folder}: holds no frame, expected names like {prefix}000.tif.")
    return dict(sorted(files.items(), key=lambda item: int(item[0])))


def _read_frame(image_file: Path, mask_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The image, number [H, W], and its cells, int32 [H, W]."""
    problems = Problems()
    with problems.collected():
        image = _read_plane(image_file)
        check_grey_values(image_file, image[None, ..., None])
    with problems.collected():
        cells = _read_plane(mask_file)
        if cells.dtype.kind not in "ui" or cells.min() < 0 or cells.max() >= 2**31:
            raise InputError(
                f"{mask_file}: holds {cells.dtype} pixels from {cells.min():g} to {cells.max():g}, "
                "expected the numbers of cells."
            )
    problems.raise_all()
    if image.shape != cells.shape:
        raise InputError(
            f"{mask_file}: has {cells.shape} pixels, expected {image.shape} as in "
            f"{image_file.name}."
        )
    return image, cells.astype(np.int32)


def _labels(cells: np.ndarray, partly_annotated: bool) -> np.ndarray:
    """int32 [H, W]: 1 = cell, 0 = background, `IGNORED` where cells may not be annotated."""
    labels = (cells > 0).astype(np.int32)
    if partly_annotated:
        labels[distance_transform_edt(cells == 0) > ANNOTATED_REACH] = IGNORED
    return labels


def _read_plane(path: Path) -> np.ndarray:
    pixels = read_image(path)
    if pixels.shape[0] != 1 or pixels.shape[-1] != 1:
        raise InputError(
            f"{path}: holds {pixels.shape[0]} pages of {pixels.shape[-1]} channels, expected one "
            "grey image."
        )
    return pixels[0, ..., 0]


def _download(dataset: str, folder: Path) -> None:
    """Creates the folder from the published zip file, once that is verified and unpacked."""
    address = ADDRESS.format(dataset)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, so that moving into place is a rename.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            archive = Path(temporary, "sequences.zip")
            download(address, archive, max_bytes=_MAX_BYTES)
            found = pooch.file_hash(str(archive), alg="sha256")
            if found != SHA256[dataset]:
                raise InputError(
                    f"{address}: the SHA-256 of the download is {found}, expected "
                    f"{SHA256[dataset]}; try again."
                )
            with zipfile.ZipFile(archive) as sequences:
                sequences.extractall(temporary)
            try:
                Path(temporary, dataset).rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{address}: cannot be downloaded ({one_line(error)}); unpack it as {folder} yourself."
        ) from error
