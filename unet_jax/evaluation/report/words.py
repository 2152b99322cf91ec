"""The words and numbers of a report."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unet_jax.augmentation import AugmentationSettings
from unet_jax.checked_settings import as_dict
from unet_jax.evaluation.scoring import ImageScores
from unet_jax.sources import CellTracking, Data, Folder, Isbi2012, Synthetic

AVERAGING_WORDS = {
    "none": "one view",
    "rotations": "7 rotations averaged",
    "symmetries": "8 symmetries averaged",
}


class Reference(NamedTuple):
    """A publication: its citation in the text, its entry in the references, and its address."""

    short: str
    text: str
    address: str


_UNET = Reference(
    "Ronneberger et al. 2015",
    "Ronneberger, O., Fischer, P. and Brox, T. (2015). U-Net: convolutional networks for "
    "biomedical image segmentation. MICCAI 2015. arXiv:1505.04597",
    "https://arxiv.org/abs/1505.04597",
)
_METRICS = Reference(
    "Arganda-Carreras et al. 2015",
    "Arganda-Carreras, I. et al. (2015). Crowdsourcing the creation of image segmentation "
    "algorithms for connectomics. Frontiers in Neuroanatomy 9, 142. doi:10.3389/fnana.2015.00142",
    "https://doi.org/10.3389/fnana.2015.00142",
)
_ISBI2012 = Reference(
    "Cardona et al. 2010",
    "Cardona, A. et al. (2010). An integrated micro- and macroarchitectural analysis of the "
    "Drosophila brain by computer-assisted serial section electron microscopy. PLoS Biology 8, "
    "e1000502. doi:10.1371/journal.pbio.1000502",
    "https://doi.org/10.1371/journal.pbio.1000502",
)
_CELL_TRACKING = Reference(
    "Maška et al. 2023",
    "Maška, M. et al. (2023). The Cell Tracking Challenge: 10 years of objective benchmarking. "
    "Nature Methods 20, 1010–1020. doi:10.1038/s41592-023-01879-y",
    "https://doi.org/10.1038/s41592-023-01879-y",
)


def number(value: float | None) -> str:
    """4 decimals, up to 6 to show 3 digits of small values; a dash if not defined."""
    if value is None:
        return "–"
    decimals = 4 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 4), 6)}f}"


def plural(count: int, noun: str) -> str:
    """A count with its noun, such as "1 image" or "1,000 images"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def listed(items: Sequence[object]) -> str:
    """Items in words, such as "a, b and c"."""
    words = [f"{item:,}" if isinstance(item, int) else str(item) for item in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def left_out_words(images: Sequence[ImageScores]) -> str:
    """How many images are left out of which metrics for lack of cells; "" if none."""
    n = len(images)
    empty = [image for image in images if image.values["rand_error"] is None]
    single = sum(image.values["v_info"] is None for image in images) - len(empty)
    found = [image.found_cells for image in empty if image.found_cells]
    where = f"in {len(found)} of them" if found and len(empty) > 1 else "there"
    finds = f"the network finds {plural(sum(found), 'cell')} {where}"
    if len(empty) == n:
        return (
            f"No cell is annotated in {'this image' if n == 1 else f'these {n} images'}, so only "
            f"IoU and Dice are defined; {finds}."
        )
    sentences = []
    for count, cells, metrics in (
        (len(empty), "no annotated cell", f"Rand error, V_rand and V_info; {finds}"),
        (single, "only one annotated cell", "V_info"),
    ):
        if count:
            has, is_ = ("has", "is") if count == 1 else ("have", "are")
            sentences.append(
                f"{count} of {plural(n, 'image')} {has} {cells} and {is_} left out of {metrics}."
            )
    return " ".join(sentences)


def data_words(data: Data) -> str:
    """What a network was trained on, after "images of"."""
    match data:
        case Isbi2012():
            return "the ISBI 2012 challenge (Cardona et al., 2010; Arganda-Carreras et al., 2015)"
        case CellTracking():
            return (
                f"sequence {data.train_sequence} of the Cell Tracking Challenge's data set "
                f"{Path(data.dataset).name} (Maška et al., 2023), with its {data.truth} truth"
            )
        case Synthetic():
            return "a data set of synthetic electron micrographs"
        case Folder():
            return "our own data"


def augmentation_words(settings: AugmentationSettings) -> list[str]:
    """The ways in which tiles were varied."""
    words = {
        "elastic_pixels": "elastic deformation (Gaussian displacements with a standard deviation "
        "of {:g} pixels on a grid of 3 × 3, bicubic in between)",
        "rotation_degrees": "rotation by angles of up to ±{:g} degrees",
        "zoom_octaves": "enlarging and shrinking by factors of up to 2 to the power of {:g}",
        "shift": "shifts to any place in the image"
        if settings.shift == 1
        else "shifts of up to {:g} times half the sides of the image",
        "mirror_probability": "mirroring with a probability of {:g}",
        "contrast_std": "a factor on the normalised grey values (Gaussian around 1 with a standard "
        "deviation of {:g})",
        "brightness_std": "an offset of the normalised grey values (Gaussian with a standard "
        "deviation of {:g})",
    }
    strengths = as_dict(settings)
    return [text.format(strengths[key]) for key, text in words.items() if strengths[key] > 0]


def references(data: Data, cells_first: bool) -> list[Reference]:
    """What a report cites; `data` as for `data_words`."""
    isbi = isinstance(data, Isbi2012)
    cell_tracking = cells_first or isinstance(data, CellTracking)
    return [_UNET, _METRICS, *[_ISBI2012] * isbi, *[_CELL_TRACKING] * cell_tracking]
