"""The page that compares networks: scores side by side, and the images where they differ most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.pictures import Panel, nearest, pixels, shown_size
from unet_jax.evaluation.report.words import AVERAGING_WORDS, number, plural
from unet_jax.evaluation.result import Comparison
from unet_jax.evaluation.scoring import Measured
from unet_jax.figures import cell_colours, cell_picture, grey_values, outlined
from unet_jax.html_pages import jpeg, save_page
from unet_jax.resizing import resized

_SHOWN = 4  # images for each network but the first


class Apart(NamedTuple):
    """An image in which a network differs much from the first one."""

    name: str
    first: float
    other: float
    is_better: bool
    panels: list[Panel]


def save_comparison(comparison: Comparison, measured: Sequence[Sequence[Measured]]) -> None:
    """Writes the page, one self-contained HTML file, `comparison.report`.

    Args:
      comparison: what `compare` returns.
      measured: for each network, the images with what it finds, in their order.
    """
    values = {
        "result": comparison,
        "metrics": {name: METRICS[name] for name in comparison.metrics},
        "values": [scores.values() for scores in comparison.scores],
        "averaging": AVERAGING_WORDS[comparison.averaging],
        "apart": [_apart(comparison, measured, k) for k in range(1, len(comparison.names))],
    }
    filters = {"number": number, "plural": plural}
    template = "comparison.html.jinja"
    save_page(comparison.report, "unet_jax.evaluation", template, values, filters)


def _apart(
    comparison: Comparison, measured: Sequence[Sequence[Measured]], other: int
) -> list[Apart]:
    """The images in which a network differs most from the first one, by the first metric."""
    metric = comparison.metrics[0]
    first, second = (comparison.values[k][metric] for k in (0, other))
    steps = [
        (abs(b - a), i)
        for i, (a, b) in enumerate(zip(first, second, strict=True))
        if a is not None and b is not None and a != b
    ]
    result = []
    for _, i in sorted(steps, reverse=True)[:_SHOWN]:
        a, b = first[i] or 0.0, second[i] or 0.0
        both = [(comparison.names[k], measured[k][i]) for k in (0, other)]
        better = (b > a) == METRICS[metric].higher
        result.append(Apart(comparison.images[i], a, b, better, _panels(both)))
    return result


def _panels(both: Sequence[tuple[str, Measured]]) -> list[Panel]:
    """The image, its truth, and what each of two named networks finds in it."""
    example = both[0][1].example
    size = shown_size(example.labels.shape)
    grey = pixels(resized(grey_values(example.image), size))
    panels = [Panel("image", jpeg(grey))]
    has_cells = bool(example.instances.any())
    if has_cells:
        true_colours, _ = cell_colours(example.instances, example.instances)
        truth = cell_picture(grey, nearest(example.instances, size), true_colours)
    else:
        truth = outlined(grey, nearest(example.labels > 0, size))
    panels.append(Panel("truth", jpeg(truth)))
    for name, image in both:
        if has_cells:
            _, colours = cell_colours(example.instances, image.cells)
            picture = cell_picture(grey, nearest(image.cells, size), colours)
        else:
            picture = pixels(np.repeat(255 * resized(image.cell, size)[..., None], 3, -1))
        panels.append(Panel(name, jpeg(picture)))
    return panels
