"""The EM segmentation challenge of ISBI 2012: 30 slices of a fly's ventral nerve cord.

Cite Cardona et al. 2010 (doi 10.1371/journal.pbio.1000502) and Arganda-Carreras et al. 2015
(doi 10.3389/fnana.2015.00142). The terms forbid redistribution: every user downloads the data from
its original site.
"""

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pooch

from unet_jax.data.download import download
from unet_jax.data.folder import connected_cells
from unet_jax.errors import InputError, one_line
from unet_jax.example import Example
from unet_jax.files.images import read_image

ADDRESS = "https://downloads.imagej.net/ISBI-2012-challenge.zip"
#: Published for the files in the zip.
MD5 = {
    "train-volume.tif": "465461edbe0254630c4ec5577f1e7764",
    "train-labels.tif": "657fe6b728c6dd0152e295c6d800001d",
    "test-volume.tif": "9767660d7abe4e0ecbdd0061a16058ad",
}
#: Of the pixels in C order, so that other lossless copies pass too.
PIXEL_SHA256 = {
    "train-volume.tif": "200da3d452d726e6c9ca1ce04b869d4edb727320d23b516d01cce707dc8c4760",
    "train-labels.tif": "a7cb64000a1a7e542682927e19c91339f58f9f178e0bcce4e207371116f0ca36",
    "test-volume.tif": "1b58fa7ec1d0ff9d39a855622db3ff66a97863036339b0d04be51b2f5a99b0e9",
}


# Of the archive, and of each file in it; they hold 24 MB and 8 MB.
_MAX_BYTES = 256 * 2**20
_MAX_ENTRIES = 1000
#: In the organisers' archive since the challenge is closed; no checksum of it is published.
TEST_LABELS = "test-labels.tif"


def read_isbi2012() -> list[Example]:
    """Reads the 30 training slices, downloading them on first use.

    They are looked for in ``$UNET_JAX_DATA/isbi2012``, then in the user's cache folder.

    Returns:
      Examples ``slice 0`` to ``slice 29``: image uint8 [512, 512]; class 0 = membrane, 1 = cell;
      a cell is a 4-connected component within its slice.

    Raises:
      InputError: the data cannot be downloaded, or is not what was published.
    """
    return _examples(_read_volume("train-volume.tif"), _read_volume("train-labels.tif"))


def read_isbi2012_test() -> list[Example]:
    """Reads the 30 slices of the challenge's hidden test, as `read_isbi2012` reads the others.

    Raises:
      InputError: as there; the labels are missing, or do not fit.
    """
    images = _read_volume("test-volume.tif")
    path = _find("test-volume.tif").with_name(TEST_LABELS)
    if not path.is_file():
        raise InputError(
            f"{path}: is missing. The organisers' archive, {ADDRESS}, contains it; put it there."
        )
    pixels = read_image(path)
    if pixels.shape != (*images.shape, 1):
        raise InputError(
            f"{path}: pages, height, width and channels are {pixels.shape}, expected "
            f"{(*images.shape, 1)} as in test-volume.tif"
        )
    for page, drawing in enumerate(pixels):
        if not np.isin(drawing, (0, 255)).all():
            wrong = drawing[~np.isin(drawing, (0, 255))][0]
            raise InputError(f"{path}: page {page} holds {wrong}, expected 0 and 255 only")
    return _examples(images, pixels[..., 0])


def _examples(images: np.ndarray, drawings: np.ndarray) -> list[Example]:
    examples = []
    for index, (image, drawing) in enumerate(zip(images, drawings, strict=True)):
        labels = (drawing == 255).astype(np.int32)
        examples.append(Example(f"slice {index}", image, labels, connected_cells(labels)))
    return examples


def _read_volume(name: str) -> np.ndarray:
    """uint8 [slices, H, W], verified."""
    path = _find(name)
    pixels = read_image(path)[..., 0]
    found = hashlib.sha256(pixels.tobytes()).hexdigest()
    if found != PIXEL_SHA256[name]:
        raise InputError(
            f"{path}: SHA-256 of its pixels is {found}, expected {PIXEL_SHA256[name]}; remove it"
        )
    return pixels


def _find(name: str) -> Path:
    cache = pooch.os_cache("unet_jax") / "isbi2012"
    own = os.environ.get("UNET_JAX_DATA")
    if own and (Path(own) / "isbi2012" / name).is_file():
        return Path(own) / "isbi2012" / name
    if not (cache / name).is_file():
        _download(cache)
    return cache / name


def _download(folder: Path) -> None:
    """Puts the files of the zip into a folder, once all of them are verified."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the folder, so that moving out of it is a rename.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            archive = Path(temporary, "challenge.zip")
            download(ADDRESS, archive, max_bytes=_MAX_BYTES)
            _unpack(archive)
            for name in (*MD5, TEST_LABELS):
                if archive.with_name(name).is_file():
                    os.replace(archive.with_name(name), folder / name)
    except OSError as error:
        raise InputError(
            f"{ADDRESS}: cannot be downloaded ({one_line(error)}); put {', '.join(MD5)} into"
            f" {folder}, or run `make demo`, which needs no data"
        ) from error


def _unpack(archive: Path) -> None:
    """Puts the files next to their zip, wherever they lie inside it, and verifies them."""
    try:
        # Each entry takes half a kilobyte of memory; the archive holds a handful.
        if archive.read_bytes().count(b"PK\1\2") > _MAX_ENTRIES:
            raise InputError(f"{ADDRESS}: holds more than {_MAX_ENTRIES:,} files")
        with zipfile.ZipFile(archive) as challenge:
            members = {PurePosixPath(member).name: member for member in challenge.namelist()}
            for name, md5 in MD5.items():
                if name not in members:
                    raise InputError(f"{ADDRESS}: holds no {name}, expected {', '.join(MD5)}")
                path = archive.with_name(name)
                path.write_bytes(_member(challenge, members[name]))
                found = pooch.file_hash(str(path), alg="md5")
                if found != md5:
                    raise InputError(f"{ADDRESS}: the MD5 of {name} is {found}, expected {md5}")
            if TEST_LABELS in members:
                labels = _member(challenge, members[TEST_LABELS])
                archive.with_name(TEST_LABELS).write_bytes(labels)
    except (InputError, OSError):
        raise
    except Exception as error:  # a damaged zip file raises many kinds
        raise InputError(
            f"{ADDRESS}: the download is not a complete zip file ({one_line(error)}); try again"
        ) from error


def _member(challenge: zipfile.ZipFile, name: str) -> bytes:
    """A file of the zip; never more than it declares, which must be plausible."""
    member = challenge.getinfo(name)
    if member.file_size > _MAX_BYTES:
        raise InputError(
            f"{ADDRESS}: {name} declares {member.file_size:,} bytes, expected at most 256 MiB"
        )
    # The other methods, and `read`, inflate all there is before they look at the size.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{ADDRESS}: {name} is compressed with method {member.compress_type}")
    with challenge.open(member) as file:
        return file.read(member.file_size)
