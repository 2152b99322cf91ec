"""The scores of a network, or an ensemble, on the images of one of its splits or on others."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unet_jax.checkpoint import load_members
from unet_jax.checkpoint.cell_settings import cell_settings, is_tuned
from unet_jax.errors import InputError
from unet_jax.evaluation.images import Selection, predict_parts, seen_before, select
from unet_jax.evaluation.result import Evaluation
from unet_jax.evaluation.scoring import Measured, measure, score, score_folds, score_images
from unet_jax.example import IGNORED, Example, annotated_share, is_sparse
from unet_jax.instances import InstanceSettings
from unet_jax.metrics.scores import baselines
from unet_jax.model import Model
from unet_jax.overlap_tile import AVERAGING
from unet_jax.pretrained import run_folder
from unet_jax.provenance import versions
from unet_jax.resizing import scaled_size
from unet_jax.run.log import read_log
from unet_jax.tiles import choose_tile_side


class Candidate(NamedTuple):
    """A run, or a network of the package, with the images that it is to be scored on.

    Attributes:
      given: the name that the user gave.
      workdir: its folder.
      members: its network or networks.
      settings: how cells are found.
      tuned: whether these settings were chosen on the validation split.
      log: the rows of its training log.
      split: one of `SPLITS`, or "images" for images other than the run's own.
      selection: the images.
    """

    given: Path
    workdir: Path
    members: list[Model]
    settings: InstanceSettings
    tuned: bool
    log: list[dict[str, Any]]
    split: str
    selection: Selection

    @property
    def examples(self) -> list[Example]:
        """The images of all parts."""
        return [example for part in self.selection.parts for example in part.examples]


def candidate(
    workdir: str | Path,
    *,
    step: str | int,
    split: str,
    images: str | Path | None,
    labels: str | Path | None,
    mask_rule: str | None,
) -> Candidate:
    """Reads what is to be scored; arguments and errors as for `evaluate`."""
    given, workdir = Path(workdir), run_folder(workdir)
    members = load_members(workdir, step)
    settings = cell_settings(workdir)
    log = read_log(workdir / "log.jsonl")
    if members[0].training is None:
        raise InputError(f"{workdir}: its checkpoint does not record its training.")
    selection = select(members, split, images=images, labels=labels, mask_rule=mask_rule)
    split = "images" if images else split
    result = Candidate(given, workdir, members, settings, is_tuned(workdir), log, split, selection)
    if all((example.labels == IGNORED).all() for example in result.examples):
        raise InputError(
            f"{selection.words}: all pixels are ignored, expected some annotated ones."
        )
    return result


def checked_averaging(averaging: str | Sequence[str]) -> Sequence[str]:
    """The ways of averaging as a sequence; ValueError for an unknown one."""
    ways = [averaging] if isinstance(averaging, str) else averaging
    if not ways or not {*ways} <= {*AVERAGING}:
        known = ", ".join(AVERAGING)
        raise ValueError(f"averaging must be one or more of {known}, not {averaging!r}.")
    return ways


def assess(
    run: Candidate, ways: Sequence[str], *, report: Path, command: str | None
) -> tuple[Evaluation, list[Measured]]:
    """Predicts and scores the images of a candidate with each way of averaging.

    Returns:
      The scores, with images and folds for the last way; and each image with what is found in it.

    Raises:
      RunFailed: the network's output is not finite.
    """
    model, parts, examples = run.members[0], run.selection.parts, run.examples
    assert model.training  # `candidate` has looked
    duplicates = seen_before(parts, "held_out" if run.split == "images" else run.split)
    names = model.class_names
    scores, seconds = {}, {}
    for averaged in ways:
        began = time.perf_counter()
        probabilities = predict_parts(parts, averaged)
        seconds[averaged] = round(time.perf_counter() - began, 2)
        measured = measure(examples, probabilities, run.settings)
        scores[averaged] = score(measured, names)

    images = score_images(measured, scores[averaged], names)
    sparse = is_sparse(examples)
    if sparse:  # strokes are no cells
        images = [replace(image, errors={}) for image in images]
    steps = [member.record.step for member in run.members if member.record]
    evaluation = Evaluation(
        checkpoint=run.given,
        report=report,
        command=command,
        step=steps if len(steps) > 1 else steps[0],
        data=run.selection.words,
        split=run.split,
        averaging=averaged,
        scores=scores,
        prediction_seconds=seconds,
        annotated=annotated_share([example.labels for example in examples]),
        sparse=sparse,
        single_cells=run.selection.single_cells,
        duplicates=duplicates,
        without_cells=sum(image.counts.cells == 0 for image in measured),
        with_one_cell=sum(image.counts.cells == 1 for image in measured),
        images=images,
        folds=score_folds(measured, [len(part.examples) for part in parts], names)
        if len(parts) > 1
        else [],
        baselines=baselines([image.separated for image in measured]),
        instances=run.settings,
        tuned=run.tuned,
        tile_side=_tile_side(model, examples),
        training=model.training,
        log=run.log,
        versions=versions(),
    )
    return evaluation, measured


def _tile_side(model: Model, examples: list[Example]) -> int:
    """The tile side with which the largest image is predicted."""
    largest = max((e.labels.shape for e in examples), key=lambda shape: shape[0] * shape[1])
    return choose_tile_side(model.network, *scaled_size(largest, model.scale))
