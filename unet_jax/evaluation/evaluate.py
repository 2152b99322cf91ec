"""An evaluation run: from a checkpoint and annotated images to scores, pictures and a report."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from unet_jax.errors import InputError
from unet_jax.evaluation.assess import assess, candidate, checked_averaging
from unet_jax.evaluation.report.cell_examples import cell_examples
from unet_jax.evaluation.report.page import save_report
from unet_jax.evaluation.report.pictures import pictures
from unet_jax.evaluation.result import Evaluation
from unet_jax.evaluation.scoring import Measured
from unet_jax.figures import class_colours, save_examples
from unet_jax.files.output import complete, complete_text, writable_folder
from unet_jax.pretrained import is_pretrained, run_folder

_EXAMPLES_SHOWN = 8
_REPORT, _RECORD, _TABLE, _PICTURE = "report.html", "report.json", "report.csv", "examples.png"


def evaluate(
    workdir: str | Path,
    *,
    step: str | int = "best",
    averaging: str | Sequence[str] = "none",
    split: str = "held_out",
    images: str | Path | None = None,
    labels: str | Path | None = None,
    mask_rule: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    command: str | None = None,
) -> Evaluation:
    """Scores a checkpoint; writes `report.html`, `report.json`, `report.csv` and `examples.png`.

    A cross-validation is scored as the ensemble of its folds; on the validation split, each fold's
    network is scored on the part that it was not trained on.

    Args:
      workdir: the folder of the training run, or a network of the package.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`; if several, the report shows the last and compares all.
      split: one of `SPLITS`.
      images: folder of images to use instead of the run's own.
      labels: folder of their masks.
      mask_rule: how to read the masks, see `read_folder`; by default as in training. With another
        rule than in training no number is ignored.
      out: folder to write to, by default `evaluation` or `evaluation_SPLIT` in `workdir`; required,
        like `images`, for a network of the package.
      overwrite: whether an existing evaluation may be replaced.
      command: the command that the report names.

    Raises:
      InputError: the checkpoint or the data cannot be used; nothing has been written.
      RunFailed: the network's output is not finite.
      ValueError: there is no such split or averaging.
    """
    ways, folder = checked_averaging(averaging), run_folder(workdir)
    if is_pretrained(folder) and not (images and out):
        raise InputError(
            f"{folder.name}: comes with the package, and nothing is written to it; give --images, "
            "--labels and --out."
        )
    run = candidate(
        workdir, step=step, split=split, images=images, labels=labels, mask_rule=mask_rule
    )
    folder = _folder(out, run.workdir / run.selection.folder, overwrite)
    evaluation, measured = assess(run, ways, report=folder / _REPORT, command=command)
    _write(evaluation, measured)
    return evaluation


def _folder(out: str | Path | None, usual: Path, overwrite: bool) -> Path:
    """The folder, after checking that results can be written to it."""
    if out is None and usual.is_symlink():
        raise InputError(f"{usual}: is a link, expected a folder; replace it, or give --out.")
    return writable_folder(Path(out or usual), (_REPORT, _RECORD, _TABLE, _PICTURE), overwrite)


def _write(evaluation: Evaluation, measured: list[Measured]) -> None:
    em = evaluation.scores[evaluation.averaging].em
    shown = measured[:_EXAMPLES_SHOWN]
    folder, config = evaluation.report.parent, evaluation.training.config
    save_examples(
        folder / _PICTURE,
        [image.separated for image in shown],
        [image.probabilities for image in shown],
        config.class_names,
        class_colours(config.model.classes, config.class_colours),
        threshold=(em["pixel_error"] or evaluation.instances).threshold,
    )
    with complete(folder / _RECORD) as unfinished:
        record = json.dumps(evaluation.record(), indent=1)
        unfinished.write_text(record + "\n", encoding="utf-8")
    with complete_text(folder / _TABLE, newline="") as table:
        csv.writer(table).writerows(evaluation.rows())
    examples = cell_examples(measured) if evaluation.layout.cells_first else {}
    save_report(evaluation, pictures(measured, em["warping_error"]), examples)
