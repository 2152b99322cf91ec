"""How the settings by which single cells are found are chosen: by SEG, on the validation split."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

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
from unet_jax.metrics import seg
from unet_jax.pretrained import is_pretrained, run_folder


@dataclass(frozen=True)
class Tuning:
    """What `tune_instances` has chosen.

    Attributes:
      file: where it was written.
      settings: how single cells are found from now on.
      seg: SEG of the cells that are found so in the validation images.
      images: their names.
    """

    file: Path
    settings: InstanceSettings
    seg: float
    images: list[str]


def tune_instances(
    workdir: str | Path,
    *,
    step: str | int = "best",
    averaging: str = "none",
    overwrite: bool = False,
) -> Tuning:
    """Chooses how single cells are found, on the validation split, and writes `instances.json`.

    In a cross-validation each fold's network predicts the part that it was not trained on.

    Args:
      workdir: of the training run; later evaluations of it go by what is written.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether earlier settings may be replaced.

    Raises:
      InputError: a checkpoint or data that cannot be used; nothing has been written.
      RunFailed: the network's output is not finite.
    """
    workdir = run_folder(workdir)
    if is_pretrained(workdir):
        raise InputError(f"{workdir.name}: comes with the package, with settings that are tuned.")
    parts = left_out(load_members(workdir, step))
    writable_folder(workdir, (SETTINGS,), overwrite)
    examples = [example for part in parts for example in part.examples]
    if not any(example.instances.any() for example in examples):
        raise InputError("No image of the validation split has an annotated cell to tune on.")
    probabilities = predict_parts(parts, averaging)
    settings, score = tune(examples, [1 - p[..., 0] for p in probabilities])
    names = [example.name for example in examples]
    record = {
        **as_dict(settings),
        "seg_on_validation": score,
        "step": step,
        "averaging": averaging,
        "images": names,
    }
    with complete(workdir / SETTINGS) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return Tuning(workdir / SETTINGS, settings, score, names)


def tune(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray]
) -> tuple[InstanceSettings, float]:
    """The settings with the highest SEG on these examples, which must not be those reported.

    Args:
      examples: with at least one cell; sizes of cells and holes to try follow from their cells.
      probabilities: of cell, float [H, W] for each.

    Returns:
      The settings, the first of several equally good ones, and their SEG.
    """
    return max(_tried(examples, probabilities), key=lambda tried: tried[1])


def _tried(
    examples: Sequence[Example], probabilities: Sequence[np.ndarray]
) -> Iterator[tuple[InstanceSettings, float]]:
    """Settings with their SEG."""
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
            yield replace(settings, border=border), seg(references, found).value
