"""How the settings for finding single cells are chosen: by SEG, on the validation split."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unet_jax.checked_settings import as_dict
from unet_jax.checkpoint import load_members
from unet_jax.checkpoint.cell_settings import SETTINGS
from unet_jax.errors import InputError
from unet_jax.evaluation.images import left_out, predict_parts
from unet_jax.example import Example
from unet_jax.files.output import complete, writable_folder
from unet_jax.instances import InstanceSettings, nearest_cells, separate_cells
from unet_jax.metrics.seg import matches
from unet_jax.pretrained import is_pretrained, run_folder


class Tuned(NamedTuple):
    """The settings that `tune` has chosen.

    Attributes:
      settings: the first of several equally good ones.
      seg: of all images together.
      seg_left_out: of the cells of each image with the settings chosen on all other images, which
        is closer to the score on new images; None if only one image has cells.
    """

    settings: InstanceSettings
    seg: float
    seg_left_out: float | None


@dataclass(frozen=True)
class Tuning:
    """What `tune_instances` has chosen.

    Attributes:
      file: where it was written.
      settings: how single cells are found from now on.
      seg: SEG of the cells found with them in the validation images.
      seg_left_out: see `Tuned`.
      images: their names.
    """

    file: Path
    settings: InstanceSettings
    seg: float
    seg_left_out: float | None
    images: list[str]

    def __str__(self):
        """The settings, and how good they are; two or three lines."""
        settings = ", ".join(f"{name} {value:g}" for name, value in as_dict(self.settings).items())
        said = f"{self.file}: SEG {self.seg:.4f} on {len(self.images)} validation images with\n"
        if self.seg_left_out is None:
            return said + settings
        return (
            f"{said}{settings}\n"
            f"SEG {self.seg_left_out:.4f} if the settings for each image are chosen on the others."
        )


def tune_instances(
    workdir: str | Path,
    *,
    step: str | int = "best",
    averaging: str = "none",
    overwrite: bool = False,
) -> Tuning:
    """Chooses how single cells are found, on the validation split, and writes `instances.json`.

    In a cross-validation, each fold's network predicts the part that it was not trained on.

    Args:
      workdir: the folder of the training run; later evaluations of it use what is written.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether earlier settings may be replaced.

    Raises:
      InputError: the checkpoint or the data cannot be used; nothing has been written.
      RunFailed: the network's output is not finite.
    """
    workdir = run_folder(workdir)
    if is_pretrained(workdir):
        raise InputError(
            f"{workdir.name}: comes with the package, where nothing is written; tune a run of your "
            "own, such as one that starts from it."
        )
    parts = left_out(load_members(workdir, step))
    writable_folder(workdir, (SETTINGS,), overwrite)
    examples = [example for part in parts for example in part.examples]
    if not any(example.instances.any() for example in examples):
        raise InputError("No image of the validation split has an annotated cell to tune on.")
    probabilities = predict_parts(parts, averaging)
    tuned = tune(examples, [1 - p[..., 0] for p in probabilities])
    names = [example.name for example in examples]
    record = {
        **as_dict(tuned.settings),
        "seg_on_validation": tuned.seg,
        "seg_left_out": tuned.seg_left_out,
        "step": step,
        "averaging": averaging,
        "images": names,
    }
    with complete(workdir / SETTINGS) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Tuning(workdir / SETTINGS, *tuned, names)


def tune(examples: Sequence[Example], probabilities: Sequence[np.ndarray]) -> Tuned:
    """The settings with the highest SEG on these examples; report scores on other examples.

    Args:
      examples: with at least one cell; their cells determine the sizes of cells and holes to try.
      probabilities: of cell, float [H, W] for each example.
    """
    settings, per_image = zip(*_tried(examples, probabilities), strict=True)
    sums = np.array(per_image)  # [settings, images]
    cells = np.array([len(np.unique(e.instances[e.instances > 0])) for e in examples])
    of_all = sums.sum(1)
    best = of_all.argmax()
    left_out = None
    if np.count_nonzero(cells) > 1:
        # Rounded: among equally good ones the first is chosen.
        of_others = np.round(of_all[:, None] - sums, 9).argmax(0)
        left_out = float(sums[of_others, range(len(cells))].sum() / cells.sum())
    return Tuned(settings[best], float(of_all[best] / cells.sum()), left_out)


def _tried(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray]
) -> Iterator[tuple[InstanceSettings, list[float]]]:
    """Settings with the sum of the intersections over union of each image's cells, see `seg`."""
    references = [example.instances for example in examples]
    areas = np.concatenate([np.bincount(cells[cells > 0]) for cells in references])
    smallest = int(areas[areas > 0].min())
    grid = list(
        product(
            (0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95),
            (smallest // 16, smallest // 4),
            (0.0, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9),
            (smallest // 4,),
        )
    )
    for values in tqdm(grid, desc="Tuning", delay=3):
        settings = InstanceSettings(*values)
        near = [nearest_cells(separate_cells(p, settings)) for p in probabilities]
        for border in (1.0, 0.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            found = [np.where(distance <= border, cells, 0) for cells, distance in near]
            pairs = zip(references, found, strict=True)
            yield replace(settings, border=border), [matches(*pair)[2].sum() for pair in pairs]
