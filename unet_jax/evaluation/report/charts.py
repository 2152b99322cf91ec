"""The charts of a report."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.words import number
from unet_jax.evaluation.scoring import ImageScores
from unet_jax.figures import SPLIT_COLOUR, draw_losses, draw_validation_errors
from unet_jax.html_pages import svg
from unet_jax.metrics import Score


class Chart(NamedTuple):
    """A picture with what it shows; `caption` may be empty."""

    title: str
    address: str
    caption: str = ""


class Strip(NamedTuple):
    """The values of all images for one metric, with their median and the worst."""

    title: str
    address: str
    median: float
    worst: str
    worst_value: float


class Histogram(NamedTuple):
    """SEG cell by cell: how many cells are annotated, found with more than 0.5, and missed."""

    address: str
    cells: int
    found: int
    missed: int
    median: float


def threshold_charts(em: dict[str, Score | None], metrics: Sequence[str]) -> list[Chart]:
    """Metrics against the threshold, for those that are shown."""
    charts = []
    for names, label in (
        (("pixel_error", "rand_error"), "error"),
        (("warping_error", "warping_error_2016"), "warping error"),
        (("v_rand", "v_info"), "score"),
    ):
        shown = [(name, score) for name in names if name in metrics and (score := em[name])]
        if not shown:
            continue
        figure, axes = _chart()
        caption = []
        for (name, score), marker in zip(shown, "os", strict=False):
            title = METRICS[name].title
            (line,) = axes.plot(score.thresholds, score.values, label=title)
            axes.plot(score.threshold, score.value, marker, color=line.get_color(), ms=7)
            caption.append(f"{title} {number(score.value)} at {score.threshold:.1f}")
        # Beside that at a threshold of 0, where all is cell, no other warping error could be seen.
        top = 4 * np.median(shown[0][1].values) if label == "warping error" else 1.02
        axes.set(xlabel="threshold of the probability of cell", ylabel=label, ylim=(0, top or None))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1)
        charts.append(Chart(label, svg(figure), "Best: " + ", ".join(caption)))
    return charts


def strips(images: Sequence[ImageScores], metrics: Sequence[str]) -> list[Strip]:
    """One strip for each metric, with a dot for each image; none for a single image."""
    result = []
    for name in metrics:
        metric = METRICS[name]
        scored = [(v, image.name) for image in images if (v := image.values[name]) is not None]
        if len(scored) < 2:
            continue
        scored.sort(key=lambda pair: pair[0], reverse=metric.higher)
        values = [value for value, _ in scored]
        figure, axes = _chart(height=1.3)
        # Neighbours in rank lie at different heights, so that equal values stay apart.
        axes.plot(values, np.arange(len(values)) % 4, "o", alpha=0.7)
        axes.plot(
            *(values[-1], (len(values) - 1) % 4, "o"),
            color=SPLIT_COLOUR,
            markersize=13,
            markerfacecolor="none",
            markeredgewidth=2,
        )
        axes.axvline(np.median(values), color="grey", linestyle="--", zorder=0)
        axes.set(yticks=[], ylim=(-1, 4), xlabel=metric.title)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)  # "0.0004" takes room
        worst_value, worst = scored[-1]
        median = float(np.median(values))
        result.append(Strip(metric.title, svg(figure), median, worst, worst_value))
    return result


def histogram(per_object: Sequence[float]) -> Histogram:
    """The histogram of each annotated cell's intersection over union with its found match."""
    figure, axes = _chart()
    axes.hist(per_object, bins=np.linspace(0, 1, 21).tolist(), color="#5b7fa6", edgecolor="white")
    axes.axvline(float(np.mean(per_object)), color="grey", linestyle="--")
    axes.set(xlabel="intersection over union with the found cell", ylabel="annotated cells")
    axes.locator_params(axis="y", integer=True)
    return Histogram(
        address=svg(figure),
        cells=len(per_object),
        # Only one found cell can overlap so much, and with one annotated cell only.
        found=sum(overlap > 0.5 for overlap in per_object),
        missed=sum(overlap == 0 for overlap in per_object),
        median=float(np.median(per_object)),
    )


def training_charts(log: list[dict[str, Any]]) -> list[Chart]:
    """Loss and errors against the step, if the rows of the log have them."""
    charts = []
    if any("loss" in row for row in log):
        figure, axes = _chart()
        draw_losses(axes, log)
        charts.append(Chart("loss", svg(figure)))
    if any("validation" in row for row in log):
        figure, axes = _chart()
        draw_validation_errors(axes, log)
        charts.append(Chart("validation errors", svg(figure)))
    return charts


def _chart(height: float = 2.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
