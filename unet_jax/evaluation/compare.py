"""Several networks on the same images: scores side by side, and how they differ image by image."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from unet_jax.errors import InputError
from unet_jax.evaluation.assess import Candidate, assess, candidate, checked_averaging
from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.comparison import save_comparison
from unet_jax.evaluation.result import Comparison, Difference, Evaluation
from unet_jax.evaluation.scoring import Measured
from unet_jax.example import sha256
from unet_jax.files.output import complete, writable_folder
from unet_jax.pretrained import is_pretrained, run_folder

_REPORT, _RECORD = "comparison.html", "comparison.json"


def compare(
    workdirs: Sequence[str | Path],
    *,
    step: str | int = "best",
    averaging: str = "none",
    split: str = "held_out",
    images: str | Path | None = None,
    labels: str | Path | None = None,
    mask_rule: str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Scores several networks on the same images; writes `comparison.html` and `comparison.json`.

    Args:
      workdirs: the folders of two or more training runs, or networks of the package. The
        images that all of them left out, with the same name, content and mask, are scored, or those
        given.
      step: see `evaluate`.
      averaging: see `evaluate`.
      split: see `evaluate`.
      images: see `evaluate`.
      labels: see `evaluate`.
      mask_rule: see `evaluate`.
      out: folder to write to; by default `comparison` in the first of the folders.
      overwrite: whether an existing comparison may be replaced.

    Raises:
      InputError: the networks cannot be compared; nothing has been written.
      RunFailed: a network's output is not finite.
      ValueError: there is no such split or averaging.
    """
    names = [str(workdir) for workdir in workdirs]
    if len({*names}) < max(2, len(names)):
        raise InputError(f"compare: expected two or more different runs, not {', '.join(names)}.")
    checked_averaging(averaging)
    pretrained = [is_pretrained(run_folder(workdir)) for workdir in workdirs]
    if any(pretrained) and not images or pretrained[0] and not out:
        raise InputError(
            f"{names[pretrained.index(True)]}: comes with the package, and nothing is written to "
            "it; give --images, --labels and --out."
        )
    runs = [
        candidate(
            workdir, step=step, split=split, images=images, labels=labels, mask_rule=mask_rule
        )
        for workdir in workdirs
    ]
    classes = [run.members[0].class_names for run in runs]
    if len({*map(len, classes)}) > 1:
        words = "; ".join(map(", ".join, classes))
        raise InputError(f"compare: the runs have different classes: {words}.")
    keys = [[(e.name, sha256(e)) for e in run.examples] for run in runs]
    left_out = dict.fromkeys(key for of_run in keys for key in of_run)
    common = [key for key in left_out if all(key in of_run for of_run in keys)]
    if not common:
        raise InputError(
            "compare: there is no image, with the same mask, that all runs left out; give --images "
            "and --labels."
        )
    folder = writable_folder(
        Path(out or runs[0].workdir / "comparison"), (_REPORT, _RECORD), overwrite
    )
    evaluations: list[Evaluation] = []
    measured: list[list[Measured]] = []
    for run, of_run in zip(runs, keys, strict=True):
        evaluation, every = assess(
            _only(run, of_run, common), [averaging], report=folder / _REPORT, command=None
        )
        kept = [key for key in of_run if key in common]
        order = [kept.index(key) for key in common]
        evaluations.append(replace(evaluation, images=[evaluation.images[i] for i in order]))
        measured.append([every[i] for i in order])
    others = len(left_out) - len(common)
    comparison = _compared(names, evaluations, averaging, others)
    with complete(folder / _RECORD) as unfinished:
        text = json.dumps(comparison.record(), indent=1) + "\n"
        unfinished.write_text(text, encoding="utf-8")
    save_comparison(comparison, measured)
    return comparison


def _only(
    run: Candidate, keys: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]
) -> Candidate:
    """The candidate with only these images; `keys` are those of all its images."""
    of_example = iter(keys)
    parts = [
        part._replace(examples=[e for e in part.examples if next(of_example) in wanted])
        for part in run.selection.parts
    ]
    return run._replace(selection=run.selection._replace(parts=[p for p in parts if p.examples]))


def _compared(
    names: list[str],
    evaluations: Sequence[Evaluation],
    averaging: str,
    left_out: int,
) -> Comparison:
    metrics = evaluations[0].layout.metrics
    values = [
        {metric: [image.values[metric] for image in evaluation.images] for metric in metrics}
        for evaluation in evaluations
    ]
    differences = [
        {
            metric: _difference(values[0][metric], other[metric], METRICS[metric].higher)
            for metric in metrics
        }
        for other in values[1:]
    ]
    return Comparison(
        report=evaluations[0].report,
        names=names,
        images=[image.name for image in evaluations[0].images],
        left_out=left_out,
        seen=[len(evaluation.duplicates) for evaluation in evaluations],
        averaging=averaging,
        metrics=metrics,
        scores=[evaluation.scores[averaging] for evaluation in evaluations],
        values=values,
        differences=differences,
    )


def _difference(
    first: Sequence[float | None], other: Sequence[float | None], higher: bool
) -> Difference:
    pairs = zip(first, other, strict=True)
    steps = np.array([b - a for a, b in pairs if a is not None and b is not None])
    gains = steps if higher else -steps
    return Difference(
        mean=float(steps.mean()) if steps.size else None,
        spread=float(steps.std(ddof=1)) if steps.size > 1 else None,
        better=int((gains > 0).sum()),
        worse=int((gains < 0).sum()),
    )
