"""An evaluation run: from a checkpoint and annotated images to scores, pictures and a report."""

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path

from unet_jax.checkpoint import load_members
from unet_jax.checkpoint.cell_settings import read_settings
from unet_jax.errors import InputError
from unet_jax.evaluation.images import predict_parts, seen_before, select
from unet_jax.evaluation.report.cell_examples import cell_examples
from unet_jax.evaluation.report.page import save_report
from unet_jax.evaluation.report.pictures import pictures
from unet_jax.evaluation.result import Evaluation
from unet_jax.evaluation.scoring import Measured, measure, score, score_folds, score_images
from unet_jax.example import IGNORED, Example, annotated_share, is_sparse
from unet_jax.figures import class_colours, save_examples
from unet_jax.files.output import complete, writable_folder
from unet_jax.metrics.scores import baselines
from unet_jax.model import Model
from unet_jax.overlap_tile import AVERAGING, choose_tile_side
from unet_jax.pretrained import is_pretrained, run_folder
from unet_jax.provenance import versions
from unet_jax.resizing import scaled_size
from unet_jax.run.log import read_log

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
      workdir: of the training run, or a network of the package.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`; of several the report shows the last and compares all.
      split: one of `SPLITS`.
      images: folder of images to use instead of the run's own.
      labels: folder of their masks.
      mask_rule: how to read the masks, see `read_folder`; by default as in training.
      out: folder to write to, by default `evaluation` or `evaluation_SPLIT` in `workdir`; not for a
        network of the package, which needs `images`, too.
      overwrite: whether an evaluation that is there may be replaced.
      command: the command that the report names.

    Raises:
      InputError: a checkpoint or data that cannot be used; nothing has been written.
      RunFailed: the network's output is not finite.
      ValueError: there is no such split or averaging.
    """
    given, workdir = Path(workdir), run_folder(workdir)
    ways = [averaging] if isinstance(averaging, str) else averaging
    if not ways or not {*ways} <= {*AVERAGING}:
        raise ValueError(f"averaging is one or some of {', '.join(AVERAGING)}, not {averaging!r}.")
    if is_pretrained(workdir) and not (images and out):
        raise InputError(
            f"{workdir.name}: comes with the package, which nothing is written into; give "
            "--images, --labels and --out."
        )
    members = load_members(workdir, step)
    settings, tuned = read_settings(workdir)
    log = read_log(workdir / "log.jsonl")
    model = members[0]
    if model.training is None:
        raise InputError(f"{workdir}: its checkpoint says nothing of its training.")
    selection = select(members, split, images=images, labels=labels, mask_rule=mask_rule)
    parts = selection.parts
    examples = [example for part in parts for example in part.examples]
    if all((example.labels == IGNORED).all() for example in examples):
        raise InputError(f"{selection.words}: all pixels are ignored, expected some that count.")
    folder = _folder(out, workdir / selection.folder, overwrite)
    duplicates = seen_before(parts, split)

    names = model.class_names
    scores, seconds = {}, {}
    for averaged in ways:
        began = time.perf_counter()
        probabilities = predict_parts(parts, averaged)
        seconds[averaged] = round(time.perf_counter() - began, 2)
        measured = measure(examples, probabilities, settings)
        scores[averaged] = score(measured, names)

    steps = [member.record.step for member in members if member.record]
    evaluation = Evaluation(
        checkpoint=given,
        report=folder / _REPORT,
        command=command,
        step=steps if len(steps) > 1 else steps[0],
        data=selection.words,
        split="images" if images else split,
        averaging=averaged,
        scores=scores,
        prediction_seconds=seconds,
        annotated=annotated_share([example.labels for example in examples]),
        sparse=is_sparse(examples),
        duplicates=duplicates,
        without_cells=sum(image.counts.cells == 0 for image in measured),
        with_one_cell=sum(image.counts.cells == 1 for image in measured),
        images=score_images(measured, scores[averaged], names),
        folds=score_folds(measured, [len(part.examples) for part in parts], names)
        if len(parts) > 1
        else [],
        baselines=baselines([image.separated for image in measured]),
        instances=settings,
        tuned=tuned,
        tile_side=_tile_side(model, examples),
        training=model.training,
        log=log,
        versions=versions(),
    )
    _write(evaluation, measured)
    return evaluation


def _folder(out: str | Path | None, usual: Path, overwrite: bool) -> Path:
    """Where results can be written."""
    if out is None and usual.is_symlink():
        raise InputError(f"{usual}: is a link, expected a folder; or give --out.")
    return writable_folder(Path(out or usual), (_REPORT, _RECORD, _TABLE, _PICTURE), overwrite)


def _tile_side(model: Model, examples: list[Example]) -> int:
    """That by which the largest image is predicted."""
    largest = max((e.labels.shape for e in examples), key=lambda shape: shape[0] * shape[1])
    return choose_tile_side(model.network, *scaled_size(largest, model.scale))


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
    with (
        complete(folder / _TABLE) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8", errors="replace") as table,
    ):
        csv.writer(table).writerows(evaluation.rows())
    save_report(evaluation, pictures(measured, em["warping_error"]), cell_examples(measured))
