"""What `eval.py` prints."""

import numpy as np

from unet_jax.checked_settings import as_dict
from unet_jax.evaluation.instance_tuning import Tuning
from unet_jax.evaluation.metric_table import METRICS
from unet_jax.evaluation.report.layout import layout
from unet_jax.evaluation.report.words import AVERAGING_WORDS, left_out_words
from unet_jax.evaluation.result import Evaluation


def summary(evaluation: Evaluation) -> str:
    """The scores as a table, and the path of the report; several lines."""
    titles = {name: METRICS[name].short for name in layout(evaluation).printed}
    lines = [f"{len(evaluation.images)} {evaluation.data}, step {evaluation.step}:"]
    if evaluation.sparse:
        lines.append(
            f"{100 * evaluation.annotated:.1f} % of the pixels are annotated, and only those are "
            "scored; there are no whole cells to score."
        )
    lines.append(f"{'':22}" + "".join(f"{title:>10}" for title in titles.values()))
    words = AVERAGING_WORDS | {"none": "this network"}
    for averaging, scores in evaluation.scores.items():
        lines.append(_row(words[averaging], [scores.values()[name] for name in titles]))
    for baseline, errors in evaluation.baselines.items():
        values = [errors[name].value if name in errors else None for name in titles]
        lines.append(_row(baseline, values))
    if not evaluation.sparse and (left_out := left_out_words(evaluation.images)):
        lines.append(left_out)
    for name, title in titles.items():
        of_folds = [fold.values[name] for fold in evaluation.folds]
        defined = [value for value in of_folds if value is not None]
        if len(defined) > 1:
            mean, spread = np.mean(defined), np.std(defined, ddof=1)
            lines.append(
                f"{title} over {len(defined)} folds: {mean:.4g}, standard deviation {spread:.2g}"
            )
    return "\n".join([*lines, f"Open {evaluation.report}"])


def _row(title: str, values: list[float | None]) -> str:
    cells = [f"{'-':>10}" if value is None else f"{value:10.4g}" for value in values]
    return f"{title:22}" + "".join(cells)


def tuning_summary(tuning: Tuning) -> str:
    """The settings that were chosen, and how good they are; two or three lines."""
    settings = ", ".join(f"{name} {value:g}" for name, value in as_dict(tuning.settings).items())
    said = f"{tuning.file}: SEG {tuning.seg:.4f} on {len(tuning.images)} validation images with\n"
    if tuning.seg_left_out is None:
        return said + settings
    return (
        f"{said}{settings}\n"
        f"SEG {tuning.seg_left_out:.4f} if the settings for each image are chosen on the others."
    )
