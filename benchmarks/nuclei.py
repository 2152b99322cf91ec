"""The network `nuclei`, as it comes, on images it has not seen: real ones, and made-up ones.

The 50 images of `dsb2018` in UNET_JAX_DATA, none of which it was trained on, by what they show; and
nuclei that are made up here: as microscopes usually show them, blurred, dim, twice as large, and
touching one another on half of their outline while their brightness varies by a factor of 10.
"""

import os
from pathlib import Path

import numpy as np
from scipy import ndimage as ndi

from benchmarks.side_by_side import rounded
from unet_jax import Example, cell_settings, find_cells, load, predict_tiled
from unet_jax.data.findings import cell_diameters
from unet_jax.data.folder import read_folder
from unet_jax.metrics import matching, seg

_SIDE = 512
_IMAGES = 5  # of each made-up kind
_BACKGROUND = 20  # grey values
# Radius, spacing of the nuclei's centres (pixels), standard deviation of the blur (pixels),
# brightness of the dimmest and of the brightest one.
KINDS = {
    "usual": (11, 44, 1.2, (80, 160)),
    "blurred": (11, 44, 4.0, (80, 160)),
    "dim": (11, 44, 1.2, (10, 20)),
    "large": (22, 88, 1.2, (80, 160)),
    "dense": (12, 24, 1.2, (20, 200)),
}


def rows(quick):
    """One row for each kind."""
    model, settings = load("nuclei"), cell_settings("nuclei")
    for kind, of_kind in _by_kind(read_nuclei("dsb2018")).items():
        yield {"images": f"dsb2018, {kind}"} | _scores(
            model, settings, of_kind[: 1 if quick else 99]
        )
    for kind in KINDS:
        made_up = [made_up_nuclei(kind, seed) for seed in range(1 if quick else _IMAGES)]
        touching = np.mean([_touching(example.instances) for example in made_up])
        scores = _scores(model, settings, made_up)
        yield {"images": f"made up, {kind}", "outline touching": rounded(touching)} | scores


def read_nuclei(name):
    """The annotated images of a folder of nuclei in UNET_JAX_DATA."""
    folder = Path(os.environ["UNET_JAX_DATA"], name)
    return list(
        read_folder(
            folder / "images", folder / "masks", mask_rule="instances", classes=2, ignore_value=-1
        )
    )


def made_up_nuclei(kind, seed):
    """An example with nuclei of a kind, always the same for a seed."""
    radius, spacing, blur, (dimmest, brightest) = KINDS[kind]
    rng = np.random.default_rng((seed, *kind.encode()))
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    instances = np.zeros((_SIDE, _SIDE), np.int32)
    nearest = np.ones((_SIDE, _SIDE), np.float32)  # 1 at the outline
    for number, (cy, cx) in enumerate(_centres(rng, spacing), 1):
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.2)
        along = (y - cy) * np.sin(angle) + (x - cx) * np.cos(angle)
        across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        size = radius * rng.uniform(0.9, 1.1)
        distance = np.hypot(along / stretch, across * stretch) / size
        instances[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    count = instances.max()
    brightness = np.exp(rng.uniform(np.log(dimmest), np.log(brightest), count + 1))
    brightness[0] = 0
    chromatin = 1 + 0.8 * ndi.gaussian_filter(rng.standard_normal(instances.shape), 2)
    height = np.sqrt(np.clip(1 - 0.8 * nearest**2, 0, 1))  # a nucleus is thinner at its outline
    light = ndi.gaussian_filter(brightness[instances] * height * chromatin, blur)
    noisy = rng.poisson(np.clip(light, 0, None) + _BACKGROUND) + rng.normal(0, 2, light.shape)
    image = np.clip(noisy, 0, 65535).astype(np.uint16)
    return Example(f"{kind} {seed}", image, (instances > 0).astype(np.int32), instances)


def _centres(rng, spacing):
    """Of a grid of triangles, each moved at random."""
    rows = np.arange(0, _SIDE + spacing, spacing * np.sqrt(3) / 2)
    grid = [
        (row, column + spacing / 2 * (number % 2))
        for number, row in enumerate(rows)
        for column in np.arange(0, _SIDE + spacing, spacing)
    ]
    return np.array(grid) + rng.uniform(-0.2, 0.2, (len(grid), 2)) * spacing


def _touching(instances):
    """The share of the outlines' pixels that are beside another nucleus."""
    inside = instances > 0
    highest = ndi.maximum_filter(instances, 3)
    lowest = -ndi.maximum_filter(np.where(inside, -instances, -np.inf), 3)
    beside = inside & (highest != lowest)
    outline = inside & (beside | ~ndi.minimum_filter(inside, 3))
    return beside.sum() / max(outline.sum(), 1)


def _by_kind(examples):
    """Real images by what they show: nuclei bright on dark or dark on light, small or large."""
    kinds = {}
    for example in examples:
        cell = example.labels > 0
        grey = example.image.reshape(*cell.shape, -1).mean(-1)
        diameter = np.median(cell_diameters(example.instances))
        size = "small" if diameter < 15 else "large" if diameter > 30 else "medium"
        kind = size if grey[cell].mean() > grey[~cell].mean() else "stained, dark on light"
        kinds.setdefault(kind, []).append(example)
    return kinds


def _scores(model, settings, examples):
    found = [
        find_cells(1 - predict_tiled(model, example.image)[..., 0], settings)
        for example in examples
    ]
    references = [example.instances for example in examples]
    annotated, cells = (
        sum(len(np.unique(a)) - 1 for a in arrays) for arrays in (references, found)
    )
    at_half = matching(references, found)[0]
    return {
        "count": len(examples),
        "annotated": annotated,
        "found": cells,
        "seg": rounded(seg(references, found).value),
        "ap_50": rounded(at_half.average_precision),
        "f1_50": rounded(at_half.f1),
    }
