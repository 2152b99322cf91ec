"""The tables of a report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unet_jax.evaluation.metric_table import METRICS, Metric
from unet_jax.evaluation.report.layout import CELLS
from unet_jax.evaluation.report.words import number
from unet_jax.evaluation.result import Evaluation
from unet_jax.evaluation.scoring import FoldScores
from unet_jax.sources import CellTracking, Data, Isbi2012

# Ronneberger et al. 2015, Table 1 and the challenge's later leaderboard; Table 2.
_PAPER_EM = {
    "warping_error": ("0.000353", "human 0.000005"),
    "rand_error": ("0.0382", "human 0.0021"),
    "pixel_error": ("0.0611", "human 0.0010"),
    "v_rand": ("0.9728", "later, on the leaderboard"),
    "v_info": ("0.9866", "later, on the leaderboard"),
}
_PAPER_SEG = {"DIC-C2DH-HeLa": ("0.7756", ""), "PhC-C2DH-U373": ("0.9203", "")}


class Cell(NamedTuple):
    """A metric with one averaging; the gain over the first looks like ("▼ 0.0102", "better")."""

    averaging: str
    value: float | None
    threshold: float | None
    gain: tuple[str, str] | None


class Row(NamedTuple):
    """A metric, or the IoU or Dice of a class, with each averaging and without a network.

    `undefined` is the reason for a missing value; `paper` is the published value with a remark.
    """

    metric: Metric
    columns: list[Cell]
    undefined: str
    baselines: list[float | None]
    paper: tuple[str, str] | None


def published(data: Data) -> dict[str, tuple[str, str]]:
    """The paper's value and a remark, by metric, for the data sets of the paper."""
    if isinstance(data, Isbi2012):
        return _PAPER_EM
    if isinstance(data, CellTracking) and data.dataset in _PAPER_SEG:
        return {"seg": _PAPER_SEG[data.dataset]}
    return {}


def score_rows(
    evaluation: Evaluation, paper: Mapping[str, tuple[str, str]], metrics: Sequence[str]
) -> list[Row]:
    """A row for each metric, and two for each class."""
    every, baselines = evaluation.scores, evaluation.baselines.values()
    rows = []
    for name in metrics:
        curves = [scores.em.get(name) for scores in every.values()]
        thresholds = [curve.threshold if curve else None for curve in curves]
        if name in CELLS:
            thresholds = [evaluation.instances.threshold for _ in every]
        values = [scores.values()[name] for scores in every.values()]
        rows.append(
            Row(
                metric=METRICS[name],
                columns=_columns(list(every), values, thresholds, METRICS[name].higher),
                undefined="no image has two annotated cells"
                if name == "v_info"
                else "no cell is annotated",
                baselines=[errors[name].value if name in errors else None for errors in baselines],
                paper=paper.get(name),
            )
        )
    for title, measure, meaning in (
        ("IoU", "intersection_over_union", "intersection over union of the pixels for which this "),
        ("Dice", "dice", "twice the intersection over the sum of the pixels for which this "),
    ):
        meaning += "class is the most probable and those annotated as it"
        for name in evaluation.training.config.class_names:
            values = [getattr(scores.classes, measure).get(name) for scores in every.values()]
            rows.append(
                Row(
                    metric=Metric(f"{title} of {name}", "", True, meaning),
                    columns=_columns(list(every), values, [None] * len(every), higher=True),
                    undefined="occurs neither in truth nor in prediction",
                    baselines=[None] * len(baselines),
                    paper=None,
                )
            )
            meaning = ""  # it is said once
    return rows


def _columns(
    averagings: list[str],
    values: list[float | None],
    thresholds: Sequence[float | None],
    higher: bool,
) -> list[Cell]:
    return [
        Cell(averaging, value, threshold, _gain(value, values[0], higher) if i else None)
        for i, (averaging, value, threshold) in enumerate(
            zip(averagings, values, thresholds, strict=True)
        )
    ]


def _gain(value: float | None, before: float | None, higher: bool) -> tuple[str, str] | None:
    if value is None or before is None:
        return None
    change = value - before
    if float(number(abs(change))) == 0:
        return ("=", "the same")
    arrow = "▲" if change > 0 else "▼"
    return f"{arrow} {number(abs(change))}", "better" if (change > 0) == higher else "worse"


def mean_and_spread(
    folds: Sequence[FoldScores], metrics: Sequence[str]
) -> tuple[list[float | None], list[float | None]]:
    """Mean and standard deviation of a metric over the folds in which it is defined."""
    columns = [[v for fold in folds if (v := fold.values[name]) is not None] for name in metrics]
    return (
        [float(np.mean(values)) if values else None for values in columns],
        [float(np.std(values, ddof=1)) if len(values) > 1 else None for values in columns],
    )
