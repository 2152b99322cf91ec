"""The result of an evaluation or a comparison, as printed and as written."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unet_jax.checked_settings import as_dict
from unet_jax.evaluation.images import Seen
from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.layout import Layout, layout
from unet_jax.evaluation.report.words import AVERAGING_WORDS, left_out_words, plural
from unet_jax.evaluation.scoring import FoldScores, ImageScores, Scores
from unet_jax.instances import InstanceSettings
from unet_jax.metrics import Matching, Score
from unet_jax.run_record import Training


@dataclass(frozen=True)
class Evaluation:
    """How good a network is.

    Attributes:
      checkpoint: the folder of the training run.
      report: the HTML file to read; `report.json`, `report.csv` and `examples.png` are next to it.
      command: the command that started the evaluation, None if there was none.
      step: of the checkpoint; one for each member of an ensemble.
      data: what was scored, in words.
      split: one of `SPLITS`, or "images" for images other than the run's own.
      averaging: how the probabilities for `images` and `folds` were averaged.
      scores: of all images together, by averaging.
      prediction_seconds: by averaging.
      annotated: the share of pixels that count, in [0, 1].
      sparse: whether only strokes are annotated, and no cells.
      single_cells: whether the masks say which cell is which.
      duplicates: the images that the network has seen, whose scores are too good.
      without_cells: how many images have no annotated cell.
      with_one_cell: how many have only one.
      images: the scores of each image.
      folds: the scores of each fold's network on its own part; empty unless these were scored.
      baselines: scores without a network, see `unet_jax.metrics.scores.baselines`.
      instances: how cells were found.
      tuned: whether that was chosen on the validation split.
      tile_side: input pixels of a tile.
      training: how the network was trained.
      log: the rows of the log of that run.
      versions: what the evaluation depends on, see `unet_jax.provenance.versions`.
    """

    checkpoint: Path
    report: Path
    command: str | None
    step: int | list[int]
    data: str
    split: str
    averaging: str
    scores: dict[str, Scores]
    prediction_seconds: dict[str, float]
    annotated: float
    sparse: bool
    single_cells: bool
    duplicates: list[Seen]
    without_cells: int
    with_one_cell: int
    images: list[ImageScores]
    folds: list[FoldScores]
    baselines: dict[str, dict[str, Score]]
    instances: InstanceSettings
    tuned: bool
    tile_side: int
    training: Training
    log: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def layout(self) -> Layout:
        """What is shown of it, and how."""
        return layout(
            self.scores[self.averaging],
            classes=self.training.config.model.classes,
            single_cells=self.single_cells,
            sparse=self.sparse,
        )

    @property
    def data_sha256(self) -> str | None:
        """One digest for all images of the training run; None if it recorded none."""
        digests = self.training.data
        lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
        # Names of files may be no text.
        content = lines.encode(errors="surrogatepass")
        return hashlib.sha256(content).hexdigest() if digests else None

    def cell_errors(self) -> dict[str, int]:
        """How many cells of all images are missed, false, split and merged."""
        kinds = self.images[0].errors
        return {kind: sum(image.errors[kind] for image in self.images) for kind in kinds}

    def rows(self) -> Iterator[list[Any]]:
        """The rows of `report.csv`: names of columns, all images together, and each image."""
        together = self.scores[self.averaging].values()
        kinds = self.cell_errors()
        yield ["image", *together, "cells", "found_cells", *kinds]
        cells, found = (sum(getattr(i, n) for i in self.images) for n in ("cells", "found_cells"))
        yield ["all images", *together.values(), cells, found, *kinds.values()]
        for image in self.images:
            values = [image.values[name] for name in together]
            yield [image.name, *values, image.cells, image.found_cells, *image.errors.values()]

    def record(self) -> dict[str, Any]:
        """The content of `report.json`."""
        source = self.training.started_from
        return {
            "checkpoint": str(self.checkpoint),
            "command": self.command,
            "step": self.step,
            "data": self.data,
            "split": self.split,
            "averaging": self.averaging,
            "scores": {
                averaging: _scores_record(scores)
                | {"prediction_seconds": self.prediction_seconds[averaging]}
                for averaging, scores in self.scores.items()
            },
            "annotated": self.annotated,
            "sparse": self.sparse,
            "duplicates": self.duplicates,
            "without_cells": self.without_cells,
            "with_one_cell": self.with_one_cell,
            "cell_errors": self.cell_errors(),
            "images": [
                {
                    "name": image.name,
                    **image.values,
                    "cells": image.cells,
                    "found_cells": image.found_cells,
                    **image.errors,
                }
                for image in self.images
            ],
            "folds": [{"images": fold.images, **fold.values} for fold in self.folds] or None,
            "baselines": {
                baseline: {
                    metric: {"value": score.value, "threshold": score.threshold}
                    for metric, score in scores.items()
                }
                for baseline, scores in self.baselines.items()
            },
            "instances": {**as_dict(self.instances), "tuned": self.tuned},
            "tile_side": self.tile_side,
            "training": {
                "command": self.training.command,
                "config": self.training.config.to_json(),
                "started_from": source and asdict(source),
                "splits": self.training.splits,
                "data_sha256": self.data_sha256,
                "versions": self.training.versions,
                "log": self.log,
            },
            "versions": self.versions,
        }

    def __str__(self):
        """The scores as a table, and the path of the report; several lines."""
        titles = {name: METRICS[name].short for name in self.layout.printed}
        lines = [f"{len(self.images)} {self.data}, step {self.step}:"]
        if self.sparse:
            lines.append(
                f"{100 * self.annotated:.1f} % of the pixels are annotated, and only those are "
                "scored; there are no whole cells to score."
            )
        lines.append(f"{'':22}" + "".join(f"{title:>10}" for title in titles.values()))
        words = AVERAGING_WORDS | {"none": "this network"}
        for averaging, scores in self.scores.items():
            of_all = scores.values()
            lines.append(f"{words[averaging]:22}" + _columns(of_all[name] for name in titles))
        for baseline, errors in self.baselines.items():
            values = (errors[name].value if name in errors else None for name in titles)
            lines.append(f"{baseline:22}" + _columns(values))
        if not self.sparse and (left_out := left_out_words(self.images)):
            lines.append(left_out)
        for name, title in titles.items():
            of_folds = [fold.values[name] for fold in self.folds]
            defined = [value for value in of_folds if value is not None]
            if len(defined) > 1:
                mean, spread = f"{np.mean(defined):.4g}", f"{np.std(defined, ddof=1):.2g}"
                folds = f"{title} over {len(defined)} folds"
                lines.append(f"{folds}: {mean}, standard deviation {spread}")
        return "\n".join([*lines, f"Open {self.report}"])


class Difference(NamedTuple):
    """How a network differs from the first one in a metric, image by image.

    Attributes:
      mean: of the differences over the images in which both are defined; None if there are none.
      spread: their sample standard deviation; None for fewer than two.
      better: the number of images in which it is better.
      worse: the number of images in which it is worse.
    """

    mean: float | None
    spread: float | None
    better: int
    worse: int


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
      report: the HTML file to read; `comparison.json` is next to it.
      names: of the networks, as they were given.
      images: the names of the images that all of them were scored on.
      left_out: how many images of only some of the networks are not among these.
      seen: how many of the images each network has seen in its training or validation.
      averaging: how the probabilities were averaged.
      metrics: those of the report, the most important one first.
      scores: of each network on all images together.
      values: for each network, by metric, the value of each image, None if it is not defined.
      differences: for each network except the first, by metric.
    """

    report: Path
    names: list[str]
    images: list[str]
    left_out: int
    seen: list[int]
    averaging: str
    metrics: list[str]
    scores: list[Scores]
    values: list[dict[str, list[float | None]]]
    differences: list[dict[str, Difference]]

    def record(self) -> dict[str, Any]:
        """The content of `comparison.json`."""
        return {
            "networks": self.names,
            "images": self.images,
            "left_out": self.left_out,
            "seen": self.seen,
            "averaging": self.averaging,
            "scores": [scores.values() for scores in self.scores],
            "values": self.values,
            "differences": [
                {metric: difference._asdict() for metric, difference in of.items()}
                for of in self.differences
            ],
        }

    def __str__(self):
        """The scores as a table, and the path of the report; several lines."""
        shown = [name for name in self.metrics if METRICS[name].short]
        lines = [f"{plural(len(self.images), 'image')}, {AVERAGING_WORDS[self.averaging]}:"]
        lines.append(f"{'':30}" + "".join(f"{METRICS[name].short:>10}" for name in shown))
        for name, scores in zip(self.names, self.scores, strict=True):
            values = scores.values()
            lines.append(f"{name[-29:]:30}" + _columns(values[metric] for metric in shown))
        return "\n".join([*lines, f"Open {self.report}"])


def _columns(values: Iterable[float | None]) -> str:
    """The values in a line of a table."""
    return "".join(f"{'-':>10}" if value is None else f"{value:10.4g}" for value in values)


def _scores_record(scores: Scores) -> dict[str, Any]:
    return {
        **{metric: {"value": value} for metric, value in scores.values().items()},
        **{metric: score and score._asdict() for metric, score in scores.em.items()},
        "seg": scores.seg and scores.seg._asdict(),
        "intersection_over_union": scores.classes.intersection_over_union,
        "dice": scores.classes.dice,
        "matching": scores.matching and [_matching_record(m) for m in scores.matching],
        "confusion": scores.classes.confusion.tolist(),
    }


def _matching_record(matching: Matching) -> dict[str, Any]:
    return {
        **matching._asdict(),
        "precision": matching.precision,
        "recall": matching.recall,
        "f1": matching.f1,
        "average_precision": matching.average_precision,
        "panoptic_quality": matching.panoptic_quality,
    }
