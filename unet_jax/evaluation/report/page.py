"""The page of a report: the values for its template, and the file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.colors import to_hex

from unet_jax import figures
from unet_jax.checked_settings import as_dict
from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.cell_examples import KINDS, CellExample
from unet_jax.evaluation.report.charts import (
    histogram,
    strips,
    threshold_charts,
    training_charts,
)
from unet_jax.evaluation.report.pictures import Picture, shown_images
from unet_jax.evaluation.report.tables import mean_and_spread, published, score_rows
from unet_jax.evaluation.report.words import (
    AVERAGING_WORDS,
    augmentation_words,
    data_words,
    left_out_words,
    listed,
    number,
    plural,
    references,
)
from unet_jax.evaluation.report.zooms import ZOOM_SIDE, zooms
from unet_jax.evaluation.result import Evaluation
from unet_jax.html_pages import save_page
from unet_jax.normalisation import PERCENTILES


def save_report(
    evaluation: Evaluation,
    pictures: Sequence[Picture],
    cell_examples: Mapping[str, Sequence[CellExample]],
) -> None:
    """Writes the report of an evaluation as one self-contained HTML file, `evaluation.report`.

    It appears only when it is complete.

    Args:
      evaluation: what `evaluate` returns.
      pictures: of its images, in their order.
      cell_examples: of cells that are wrong in some way, by kind.
    """
    save_page(
        evaluation.report,
        "unet_jax.evaluation",
        "report.html.jinja",
        _context(evaluation, pictures, cell_examples),
        {"number": number, "plural": plural, "listed": listed},
    )


def _context(
    evaluation: Evaluation,
    pictures: Sequence[Picture],
    cell_examples: Mapping[str, Sequence[CellExample]],
) -> dict[str, Any]:
    """The values for the template."""
    shown = evaluation.scores[evaluation.averaging]
    config, images = evaluation.training.config, evaluation.images
    data = config.data
    single_cells, cells_first, classes_first, metrics, _ = evaluation.layout
    main = [name for name in metrics if name != "warping_error_2016"]
    main = main[:4] if cells_first else main
    paper = {} if evaluation.split == "images" else published(data)
    # By which cells are found, where the warping error has none because no cell is annotated.
    threshold = (shown.em["warping_error"] or evaluation.instances).threshold
    steps = evaluation.step if isinstance(evaluation.step, list) else [evaluation.step]
    mean, spread = mean_and_spread(evaluation.folds, metrics)
    colours = figures.class_colours(config.model.classes, config.class_colours)
    return {
        "result": evaluation,
        "shown": shown,
        "values": shown.values(),
        "threshold": threshold,
        "left_out": "" if evaluation.sparse else left_out_words(images),
        "config": config,
        "data": data,
        "data_words": data_words(data),
        "scale": data.scale,
        "percentiles": [f"{percentile:g}" for percentile in PERCENTILES],
        "augmentation": augmentation_words(config.augmentation),
        "n": len(images),
        "members": len(steps),
        "step": steps[0],
        "single_cells": single_cells,
        "cells_first": cells_first,
        "classes_first": classes_first,
        "hidden_test": evaluation.split == "test",
        "averaging_names": AVERAGING_WORDS,
        "metrics": {name: METRICS[name] for name in metrics},
        "tiles": main[:5],
        "rows": score_rows(evaluation, paper, metrics),
        "paper": paper,
        "fold_means": mean,
        "fold_spreads": spread,
        "charts": threshold_charts(shown.em, metrics),
        "strips": strips(images, main),
        "histogram": histogram(shown.seg.per_object) if cells_first and shown.seg else None,
        "rank_by": METRICS[metrics[0]].title,
        "examples": shown_images(
            images,
            pictures,
            rank_by=metrics[0],
            threshold=threshold,
            colours=colours,
            cells_first=cells_first,
        ),
        "cell_errors": evaluation.cell_errors(),
        "cell_error_words": KINDS,
        "cell_examples": cell_examples,
        "zooms": zooms(pictures, threshold),
        "zoom_side": ZOOM_SIDE,
        "training_charts": training_charts(evaluation.log),
        "settings": list(_flat(config.to_json())),
        "instances": {**as_dict(evaluation.instances), "tuned": evaluation.tuned},
        "references": references(data, cells_first),
        "figures": figures,
        "class_colours": [to_hex(colour / 255) for colour in colours],
    }


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a nested dict, written as on the command line, with their values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
