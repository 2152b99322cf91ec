"""Which images, and which parts, to annotate next: those about which the network is least certain.

Images are ranked by the mean entropy of their pixels, which is related to the share that is wrong.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

from unet_jax.figures import grey_values, outlined
from unet_jax.files.images import read_image
from unet_jax.files.names import file_stem
from unet_jax.files.output import complete_text
from unet_jax.html_pages import jpeg, save_page

_REGIONS, _SIDE = 3, 128  # of an image; pixels of a region's side
_SHOWN, _LONGEST_SIDE = 12, 512  # images in the page; pixels of a picture
_SEEN_SIDE = 2048  # of larger images each n-th pixel is looked at


class Ranked(NamedTuple):
    """A page of an image file, and how uncertain the network is about it.

    Attributes:
      file: of the image.
      page: its number, from 0.
      entropy: the mean over its pixels, in bits.
      regions: rows and columns of the parts with the highest mean, the highest first.
    """

    file: Path
    page: int
    entropy: float
    regions: list[tuple[slice, slice]]


def rank_images(files: Sequence[Path], output: Path) -> Path:
    """Ranks the pages of image files whose uncertainty has been written to a folder.

    Writes `rank.csv` there, with all of them, and `rank.html`, with pictures of the first ones, and
    returns the path of the latter.

    Raises:
      InputError: an image or a result can no longer be read.
      OSError: one of these files cannot be written.
    """
    pages = []
    for file in files:
        for page, uncertainty in enumerate(read_image(_result(output, file), mapped=True)):
            regions = _regions(uncertainty[..., 0])
            mean = float(uncertainty[..., 0].mean(dtype=np.float64))
            pages.append(Ranked(file, page, mean, regions))
    pages.sort(key=lambda ranked: -ranked.entropy)
    with complete_text(output / "rank.csv", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["rank", "image", "page", "mean_entropy_bits", "rows", "columns"])
        for number, ranked in enumerate(pages, 1):
            # Of the first part.
            places = [f"{part.start}-{part.stop - 1}" for part in ranked.regions[0]]
            writer.writerow(
                [number, ranked.file.name, ranked.page, f"{ranked.entropy:.6g}", *places]
            )
    shown = [(ranked, *_pictures(ranked, output)) for ranked in pages[:_SHOWN]]
    ranking = output / "rank.html"
    values = {"count": len(pages), "shown": shown}
    save_page(ranking, "unet_jax.prediction", "rank.html.jinja", values)
    return ranking


def _result(output: Path, file: Path) -> Path:
    return output / f"{file_stem(file)}_uncertainty.tif"


def _every(shape: tuple[int, ...], longest: int) -> int:
    return math.ceil(max(shape) / longest)


def _regions(entropy: np.ndarray) -> list[tuple[slice, slice]]:
    """Up to three windows with the highest means that do not overlap; at least one."""
    every = _every(entropy.shape, _SEEN_SIDE)
    whole, entropy = entropy.shape, entropy[::every, ::every]
    height, width = (min(max(_SIDE // every, 1), length) for length in entropy.shape)
    sums = np.pad(entropy.cumsum(0, np.float64).cumsum(1), ((1, 0), (1, 0)))
    # By each window's first row and column.
    sums = (
        sums[height:, width:]
        - sums[:-height, width:]
        - sums[height:, :-width]
        + sums[:-height, :-width]
    )
    found: list[tuple[slice, slice]] = []
    while len(found) < _REGIONS and sums.max() > -np.inf:
        top, left = map(int, np.unravel_index(sums.argmax(), sums.shape))
        rows, columns = (
            slice(first * every, min((first + length) * every, end))
            for first, length, end in ((top, height, whole[0]), (left, width, whole[1]))
        )
        found.append((rows, columns))
        sums[
            max(top - height + 1, 0) : top + height, max(left - width + 1, 0) : left + width
        ] = -np.inf
    return found


def _pictures(ranked: Ranked, output: Path) -> tuple[str, str]:
    """The image with its regions, and its entropy, as data addresses."""
    image = read_image(ranked.file, mapped=True)[ranked.page]
    entropy = read_image(_result(output, ranked.file), mapped=True)[ranked.page]
    every = _every(image.shape[:2], _LONGEST_SIDE)
    grey = grey_values(np.asarray(image[::every, ::every]))
    inside = np.zeros(grey.shape, bool)
    for region in ranked.regions:
        inside[tuple(slice(part.start // every, part.stop // every) for part in region)] = True
    shade = np.asarray(entropy[::every, ::every, 0])
    colours = matplotlib.colormaps["magma"](shade / max(float(shade.max()), 1e-6), bytes=True)
    return jpeg(outlined(grey, inside)), jpeg(colours[..., :3])
