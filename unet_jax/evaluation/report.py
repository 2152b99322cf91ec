"""The report of an evaluation: one HTML file that opens anywhere, with all its pictures inside."""

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import ndimage

from unet_jax.figures import (
    IGNORED_COLOUR,
    MERGE_COLOUR,
    PALE_MERGE_COLOUR,
    PALE_SPLIT_COLOUR,
    SEVERAL_COLOUR,
    SPLIT_COLOUR,
    TRUTH_COLOUR,
    UNMATCHED_COLOUR,
    cell_colours,
    cell_picture,
    class_colours,
    class_error_picture,
    class_picture,
    draw_losses,
    draw_validation_errors,
    error_picture,
    grey_values,
    outlined,
)
from unet_jax.files.output import complete
from unet_jax.normalisation import PERCENTILES
from unet_jax.resizing import resized


class Picture(NamedTuple):
    """One scored image with all that the report draws of it.

    Attributes:
      name: as in the result.
      image: number [H, W] or [H, W, C].
      labels: int32 [H, W], the true classes, 0 = background or membrane, or `IGNORED`.
      cell: float32 [H, W], probability of cell.
      found: int [H, W], the most probable class.
      split: bool [H, W], where the warping error finds predicted membrane that splits a cell.
      merge: bool [H, W], where it finds predicted cell that merges two.
      true_cells: int32 [H, W], the cell each pixel belongs to, 0 = none.
      found_cells: int32 [H, W], the same of the cells found.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    cell: np.ndarray
    found: np.ndarray
    split: np.ndarray
    merge: np.ndarray
    true_cells: np.ndarray
    found_cells: np.ndarray


class _Metric(NamedTuple):
    title: str
    higher: bool  # whether a higher value is the better one
    meaning: str


_METRICS = {
    "rand_error": _Metric(
        "Rand error",
        False,
        "1 − F-score of pairs of pixels: are those of one cell found in one piece?",
    ),
    "warping_error": _Metric(
        "warping error",
        False,
        "share of pixels at which cells are split or merged, wherever membranes run exactly; "
        "setting of 2015. All membrane would score 0: it means something only beside the others",
    ),
    "warping_error_2016": _Metric(
        "warping error, 2016",
        False,
        "the same in the challenge's later setting: thresholds from 0.1 on, a radius of 10 pixels",
    ),
    "pixel_error": _Metric("pixel error", False, "1 − F-score of the cells' pixels"),
    "v_rand": _Metric(
        "V_rand",
        True,
        "F-score of pairs of pixels after the membranes are thinned: their width does not count",
    ),
    "v_info": _Metric(
        "V_info", True, "how much true and found cells tell about each other, after thinning"
    ),
    "seg": _Metric(
        "SEG",
        True,
        "mean over the annotated cells: intersection over union with the found cell that covers "
        "more than half of it, 0 if there is none",
    ),
    "mean_iou": _Metric("mean IoU", True, "mean of the IoU of all classes, see the last rows"),
}
_EM_ORDER = ("rand_error", "warping_error", "warping_error_2016", "pixel_error", "v_rand", "v_info")

# Ronneberger et al. 2015, Table 1 and the challenge's later leaderboard; Table 2.
_PAPER_EM = {
    "warping_error": ("0.000353", "human 0.000005"),
    "rand_error": ("0.0382", "human 0.0021"),
    "pixel_error": ("0.0611", "human 0.0010"),
    "v_rand": ("0.9728", "later, on the leaderboard"),
    "v_info": ("0.9866", "later, on the leaderboard"),
}
_PAPER_SEG = {"DIC-C2DH-HeLa": ("0.7756", ""), "PhC-C2DH-U373": ("0.9203", "")}

_AVERAGING = {
    "none": "one view",
    "rotations": "7 rotations averaged",
    "symmetries": "8 symmetries averaged",
}

_LONGEST_SIDE = 512  # pixels of a picture in the report
_BEST, _WORST, _UNRANKED = 2, 3, 2  # images shown
_ZOOMS, _ZOOM_SIDE, _ZOOM_SCALE = 6, 96, 4  # windows of the image's pixels, magnified


def save_report(file: Path, result: dict[str, Any], pictures: list[Picture]) -> None:
    """Writes the report of an evaluation as one self-contained HTML file.

    Args:
      file: HTML to write; it appears when it is complete.
      result: what `evaluate` writes as `report.json`.
      pictures: of the images of the result, in their order.
    """
    environment = Environment(
        loader=PackageLoader("unet_jax.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "plural": _plural, "listed": _listed}
    page = environment.get_template("report.html.jinja").render(_context(result, pictures))
    with complete(file) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _context(result, pictures) -> dict[str, Any]:
    """What the template is given beside the result itself."""
    scores = result["scores"][result["averaging"]]
    config, images = result["training"]["config"], result["images"]
    data = config["data"]
    paper = {} if result["split"] == "images" else _paper(data)
    # By which cells are found, where the warping error has none because no cell is annotated.
    threshold = (scores["warping_error"] or result["instances"])["threshold"]
    single_cells = data["source"] == "cell_tracking" or data.get("mask_rule") == "instances"
    cells_first = single_cells and scores["seg"] is not None
    sparse = result["sparse"]
    without_cells = scores["rand_error"] is None
    several = config["model"]["classes"] > 2
    classes_first = (sparse or without_cells or several) and not cells_first
    order = ("mean_iou", "pixel_error") if sparse else _order(cells_first, classes_first)
    steps = result["step"] if isinstance(result["step"], list) else [result["step"]]
    return {
        "result": result,
        "shown": scores,
        "values": {name: _value(scores, name) for name in _METRICS},
        "threshold": threshold,
        "left_out": "" if sparse else left_out_words(images),
        "config": config,
        "data": data,
        "data_words": _data_words(data),
        "scale": data.get("scale", 1),
        "percentiles": [f"{percentile:g}" for percentile in PERCENTILES],
        "augmentation": _augmentation_words(config["augmentation"]),
        "n": len(images),
        "members": len(steps),
        "step": steps[0],
        "single_cells": single_cells,
        "cells_first": cells_first,
        "classes_first": classes_first,
        "hidden_test": result["split"] == "test",
        "averaging_names": _AVERAGING,
        "image_metrics": {name: _METRICS[name] for name in order},
        "tiles": _tiles(scores, order),
        "rows": _table(result, paper, order),
        "confusion": np.array(scores["confusion"]) if classes_first else None,
        "paper": paper,
        "folds": _folds(result["folds"], order) if result["folds"] else None,
        "charts": _charts(scores, order),
        "spreads": _spreads(images, order),
        "histogram": _histogram(scores["seg"]["per_object"]) if cells_first else None,
        "rank_by": _METRICS[order[0]].title,
        "examples": _examples(result, pictures, threshold, order[0], cells_first),
        "zooms": _zooms(pictures, threshold),
        "zoom_side": _ZOOM_SIDE,
        "losses": _training_charts(result["training"]["log"]),
        "settings": list(_flat(config)),
        "references": _references(data, cells_first),
        "colours": {
            "split": SPLIT_COLOUR,
            "merge": MERGE_COLOUR,
            "pale_split": PALE_SPLIT_COLOUR,
            "pale_merge": PALE_MERGE_COLOUR,
            "ignored": IGNORED_COLOUR,
            "unmatched": UNMATCHED_COLOUR,
            "several": SEVERAL_COLOUR,
            "truth": TRUTH_COLOUR,
        },
        "class_colours": [to_hex(colour / 255) for colour in class_colours(result["training"])],
    }


def left_out_words(images: list[dict[str, Any]]) -> str:
    """How many images are left out of which metrics as they have no cell, or only one; "" for none.

    Args:
      images: those of the result.
    """
    n = len(images)
    empty = [image for image in images if image["rand_error"] is None]
    single = sum(image["v_info"] is None for image in images) - len(empty)
    found = [image["found_cells"] for image in empty if image["found_cells"]]
    where = f"in {len(found)} of them" if found and len(empty) > 1 else "there"
    finds = f"the network finds {_plural(sum(found), 'cell')} {where}"
    if len(empty) == n:
        return (
            f"No cell is annotated in {'this image' if n == 1 else f'these {n} images'}, so that "
            f"only IoU is defined; {finds}."
        )
    sentences = []
    for count, cells, metrics in (
        (len(empty), "no annotated cell", f"Rand error, V_rand and V_info; {finds}"),
        (single, "one annotated cell only", "V_info"),
    ):
        if count:
            has, is_ = ("has", "is") if count == 1 else ("have", "are")
            sentences.append(
                f"{count} of {_plural(n, 'image')} {has} {cells} and {is_} left out of {metrics}."
            )
    return " ".join(sentences)


def _number(value: float | None) -> str:
    """4 decimals, up to 6 for 3 digits of small values; a dash for what is not defined."""
    if _undefined(value):
        return "–"
    decimals = 4 if value == 0 else 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(decimals, 4), 6)}f}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _listed(items: list) -> str:
    """Such as "a, b and c"."""
    words = [f"{item:,}" if isinstance(item, int) else str(item) for item in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _undefined(value):
    return value is None or math.isnan(value)


def _flat(config, prefix="") -> Iterator[tuple[str, Any]]:
    """The keys of a nested dict as on the command line, with their values."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# ---- Scores in words and tables ----


def _value(scores, metric):
    return scores[metric]["value"] if scores.get(metric) else None


def _paper(data) -> dict[str, tuple[str, str]]:
    """The published value and a remark, by metric, for the data sets of the paper."""
    if data["source"] == "isbi2012":
        return _PAPER_EM
    if data["source"] == "cell_tracking" and data["dataset"] in _PAPER_SEG:
        return {"seg": _PAPER_SEG[data["dataset"]]}
    return {}


def _order(cells_first, classes_first) -> tuple[str, ...]:
    """The metrics to show; images are ranked by the first."""
    if classes_first:
        return ("mean_iou", "pixel_error", *(m for m in _EM_ORDER if m != "pixel_error"), "seg")
    return ("seg", *_EM_ORDER) if cells_first else (*_EM_ORDER, "seg")


def _tiles(scores, order):
    """The main figures: (title, value, which direction is better)."""
    shown = [name for name in order if name != "warping_error_2016"]
    return [
        (_METRICS[name].title, _number(_value(scores, name)), _METRICS[name].higher)
        for name in shown[: 4 if order[0] == "seg" else 5]
    ]


def _table(result, paper, order):
    """A row for each metric and class."""
    every = result["scores"]
    rows = []
    for name in order:
        thresholds = [
            result["instances"]["threshold"]
            if name == "seg"
            else (scores[name] or {}).get("threshold")
            for scores in every.values()
        ]
        rows.append(
            {
                "metric": _METRICS[name],
                "columns": _columns(
                    every, _METRICS[name], [_value(s, name) for s in every.values()], thresholds
                ),
                "undefined": "no image has two annotated cells"
                if name == "v_info"
                else "no cell is annotated",
                "baselines": [_value(scores, name) for scores in result["baselines"].values()],
                "paper": paper.get(name),
            }
        )
    for i, class_name in enumerate(result["training"]["config"]["class_names"]):
        meaning = "intersection over union of the pixels for which this class is the likeliest"
        metric = _Metric(f"IoU of {class_name}", True, "" if i else meaning)
        values = [s["intersection_over_union"].get(class_name) for s in every.values()]
        rows.append(
            {
                "metric": metric,
                "columns": _columns(every, metric, values, [None] * len(values)),
                "undefined": "occurs neither in truth nor in prediction",
                "baselines": [None] * len(result["baselines"]),
                "paper": None,
            }
        )
    return rows


def _columns(every, metric, values, thresholds):
    """Value, threshold and the gain over the first column, for each averaging."""
    return [
        {
            "averaging": averaging,
            "value": value,
            "threshold": threshold,
            "gain": _gain(value, values[0], metric.higher) if i else None,
        }
        for i, (averaging, value, threshold) in enumerate(
            zip(every, values, thresholds, strict=True)
        )
    ]


def _gain(value, before, higher):
    """Such as ("▼ 0.0102", "better")."""
    if _undefined(value) or _undefined(before):
        return None
    change = value - before
    if float(_number(abs(change))) == 0:
        return ("=", "the same")
    arrow = "▲" if change > 0 else "▼"
    return f"{arrow} {_number(abs(change))}", "better" if (change > 0) == higher else "worse"


def _folds(folds, order):
    """A row for each part, and the mean and the standard deviation of each metric."""
    columns = [[f[name] for f in folds if not _undefined(f[name])] for name in order]
    return {
        "metrics": [_METRICS[name] for name in order],
        "rows": [
            {"images": len(fold["images"]), "values": [fold[name] for name in order]}
            for fold in folds
        ],
        "mean": [np.mean(values) if values else None for values in columns],
        "spread": [np.std(values, ddof=1) if len(values) > 1 else None for values in columns],
    }


def _data_words(data) -> str:
    """What a network was trained on, after "images of"."""
    if data["source"] == "isbi2012":
        return "the ISBI 2012 challenge (Cardona et al., 2010; Arganda-Carreras et al., 2015)"
    if data["source"] == "cell_tracking":
        return (
            f"sequence {data['train_sequence']} of the Cell Tracking Challenge's data set "
            f"{Path(data['dataset']).name} (Maška et al., 2023), with its {data['truth']} truth"
        )
    if data["source"] == "synthetic":
        return "a data set of synthetic electron micrographs"
    return "our own data"


def _augmentation_words(augmentation) -> list[str]:
    words = {
        "elastic_pixels": "elastic deformation (Gaussian displacements with a standard deviation "
        "of {:g} pixels on a grid of 3 × 3, bicubic in between)",
        "rotation_degrees": "rotation by angles of up to ±{:g} degrees",
        "shift": "shifts to any place of the image"
        if augmentation["shift"] == 1
        else "shifts of up to {:g} times half the sides of the image",
        "mirror_probability": "mirroring with a probability of {:g}",
        "contrast_std": "a factor on the normalised grey values (Gaussian around 1 with a standard "
        "deviation of {:g})",
        "brightness_std": "an offset of the normalised grey values (Gaussian with a standard "
        "deviation of {:g})",
    }
    return [text.format(augmentation[key]) for key, text in words.items() if augmentation[key] > 0]


def _references(data, cells_first) -> list[dict[str, str]]:
    isbi = data["source"] == "isbi2012"
    cell_tracking = cells_first or data["source"] == "cell_tracking"
    return [
        {"short": short, "text": text, "address": address}
        for cited, short, text, address in (
            (
                True,
                "Ronneberger et al. 2015",
                "Ronneberger, O., Fischer, P. and Brox, T. (2015). U-Net: convolutional networks "
                "for biomedical image segmentation. MICCAI 2015. arXiv:1505.04597",
                "https://arxiv.org/abs/1505.04597",
            ),
            (
                True,
                "Arganda-Carreras et al. 2015",
                "Arganda-Carreras, I. et al. (2015). Crowdsourcing the creation of image "
                "segmentation algorithms for connectomics. Frontiers in Neuroanatomy 9, 142. "
                "doi:10.3389/fnana.2015.00142",
                "https://doi.org/10.3389/fnana.2015.00142",
            ),
            (
                isbi,
                "Cardona et al. 2010",
                "Cardona, A. et al. (2010). An integrated micro- and macroarchitectural analysis "
                "of the Drosophila brain by computer-assisted serial section electron microscopy. "
                "PLoS Biology 8, e1000502. doi:10.1371/journal.pbio.1000502",
                "https://doi.org/10.1371/journal.pbio.1000502",
            ),
            (
                cell_tracking,
                "Maška et al. 2023",
                "Maška, M. et al. (2023). The Cell Tracking Challenge: 10 years of objective "
                "benchmarking. Nature Methods 20, 1010–1020. doi:10.1038/s41592-023-01879-y",
                "https://doi.org/10.1038/s41592-023-01879-y",
            ),
        )
        if cited
    ]


# ---- Charts ----


def _chart(width=4.4, height=2.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    # The same result gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "unet_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _address(buffer.getvalue(), "svg+xml")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _charts(scores, order):
    """Metrics against the threshold."""
    charts = []
    for names, label in (
        (("pixel_error", "rand_error"), "error"),
        (("warping_error", "warping_error_2016"), "warping error"),
        (("v_rand", "v_info"), "score"),
    ):
        shown = [name for name in names if name in order and scores[name]]
        if not shown:
            continue
        figure, axes = _chart()
        caption = []
        for name, marker in zip(shown, "os", strict=False):
            score, title = scores[name], _METRICS[name].title
            (line,) = axes.plot(score["thresholds"], score["values"], label=title)
            axes.plot(score["threshold"], score["value"], marker, color=line.get_color(), ms=7)
            caption.append(f"{title} {_number(score['value'])} at {score['threshold']:.1f}")
        # Beside that at a threshold of 0, where all is cell, no other warping error could be seen.
        top = 4 * np.median(scores[names[0]]["values"]) if label == "warping error" else 1.02
        axes.set(xlabel="threshold of the probability of cell", ylabel=label, ylim=(0, top or None))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1)
        charts.append(
            {"address": _svg(figure), "title": label, "caption": "Best: " + ", ".join(caption)}
        )
    return charts


def _spreads(images, order):
    """One strip for each metric, a dot for each image; none for a single image."""
    strips = []
    em = [name for name in order if name != "warping_error_2016"]
    for name in em[:4] if order[0] == "seg" else em:
        metric = _METRICS[name]
        scored = [image for image in images if not _undefined(image[name])]
        if len(scored) < 2:
            continue
        scored.sort(key=lambda image: image[name], reverse=metric.higher)
        values = [image[name] for image in scored]
        figure, axes = _chart(height=1.3)
        # Neighbours in rank lie at different heights, so that equal values stay apart.
        axes.plot(values, np.arange(len(values)) % 4, "o", alpha=0.7)
        ring = {"markersize": 13, "markerfacecolor": "none", "markeredgewidth": 2}
        axes.plot(values[-1], (len(values) - 1) % 4, "o", color=SPLIT_COLOUR, **ring)
        axes.axvline(np.median(values), color="grey", linestyle="--", zorder=0)
        axes.set(yticks=[], ylim=(-1, 4), xlabel=metric.title)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=5)  # "0.0004" takes room
        strips.append(
            {
                "title": metric.title,
                "chart": _svg(figure),
                "median": float(np.median(values)),
                "worst": scored[-1]["name"],
                "worst_value": values[-1],
            }
        )
    return strips


def _histogram(per_object):
    figure, axes = _chart()
    axes.hist(per_object, bins=np.linspace(0, 1, 21), color="#5b7fa6", edgecolor="white")
    axes.axvline(np.mean(per_object), color="grey", linestyle="--")
    axes.set(xlabel="intersection over union with the found cell", ylabel="annotated cells")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return {
        "chart": _svg(figure),
        "cells": len(per_object),
        # Only one found cell can overlap so much, and with one annotated cell only.
        "found": sum(overlap > 0.5 for overlap in per_object),
        "missed": sum(overlap == 0 for overlap in per_object),
        "median": float(np.median(per_object)),
    }


def _training_charts(log):
    """Loss and errors against the step, as far as the log has them."""
    charts = []
    if any("loss" in row for row in log):
        figure, axes = _chart()
        draw_losses(axes, log)
        charts.append({"address": _svg(figure), "title": "loss"})
    if any("validation" in row for row in log):
        figure, axes = _chart()
        draw_validation_errors(axes, log)
        charts.append({"address": _svg(figure), "title": "validation errors"})
    return charts


# ---- Pictures ----


def _examples(result, pictures, threshold, rank_by, cells_first):
    """The best and the worst images with their panels, or all if they are few.

    Of those without an annotated cell, which have no rank, the ones in which most are found.
    """
    images = result["images"]
    scored = [i for i, image in enumerate(images) if not _undefined(image[rank_by])]
    scored.sort(key=lambda i: images[i][rank_by], reverse=_METRICS[rank_by].higher)
    unscored = [i for i in range(len(images)) if i not in scored]
    unscored.sort(key=lambda i: images[i]["found_cells"], reverse=True)
    chosen = scored + unscored
    if len(images) > _BEST + _WORST:
        chosen = scored[:_BEST] + scored[_BEST:][-_WORST:] + unscored[:_UNRANKED]
    colours = class_colours(result["training"])
    return [
        {
            **images[i],
            "rank": scored.index(i) + 1 if i in scored else None,
            "of": len(scored),
            "panels": _panels(pictures[i], threshold, colours, cells_first),
        }
        for i in chosen
    ]


def _panels(picture: Picture, threshold: float, colours: np.ndarray, cells_first: bool):
    """(title, address) of the pictures of one image."""
    size = _shown_size(picture.labels.shape)
    grey = _bytes(resized(grey_values(picture.image), size))
    panels = [("image", _jpeg(grey))]
    if cells_first:
        true, found = cell_colours(picture.true_cells, picture.found_cells)
        for title, cells, of_cells in (
            ("annotated cells", picture.true_cells, true),
            ("found cells", picture.found_cells, found),
        ):
            panels.append((title, _jpeg(cell_picture(grey, _nearest(cells, size), of_cells))))
    else:
        panels.append(("truth", _png(_nearest(class_picture(picture.labels, colours), size))))
    if len(colours) > 2 and not cells_first:
        for title, pixels in (
            ("most probable class", class_picture(picture.found, colours)),
            ("errors", class_error_picture(picture.labels, picture.found)),
        ):
            panels.append((title, _png(_nearest(pixels, size))))
        return panels
    panels.append(("probability of cell", _jpeg(_bytes(255 * resized(picture.cell, size)))))
    # As wide as can be seen when the whole image is a few centimetres.
    errors = _errors(picture, threshold, widen=max(picture.labels.shape) // 170)
    panels.append(("errors", _png(_nearest(errors, size))))
    return panels


def _zooms(pictures, threshold):
    """The windows with the most pixels that split or merge, and their panels."""
    zooms = []
    for index, rows, columns in worst_windows([p.split | p.merge for p in pictures]):
        picture = pictures[index]
        part = Picture(picture.name, *(array[rows, columns] for array in picture[1:]))
        grey = grey_values(picture.image)[rows, columns]
        truth = _magnified(part.labels) > 0
        zooms.append(
            {
                "name": picture.name,
                "rows": rows,
                "columns": columns,
                "split": int(part.split.sum()),
                "merge": int(part.merge.sum()),
                "panels": [
                    ("image, truth", _jpeg(outlined(_magnified(grey), truth))),
                    ("probability", _jpeg(_magnified(_bytes(255 * part.cell)))),
                    ("errors", _png(_magnified(_errors(part, threshold, widen=1)))),
                ],
            }
        )
    return zooms


def _errors(picture, threshold, *, widen):
    predicted = picture.cell > threshold
    return error_picture(picture.labels, predicted, picture.split, picture.merge, widen=widen)


def worst_windows(errors: list[np.ndarray]) -> Iterator[tuple[int, slice, slice]]:
    """The windows with the most errors, most first, up to six that do not overlap.

    Args:
      errors: bool [H, W] for each image.

    Yields:
      The image's index, rows and columns; 96 each, or all that the image has.
    """
    scores = [_window_scores(error) for error in errors]
    for _ in range(_ZOOMS):
        index = max(range(len(errors)), key=lambda i: scores[i].max())
        score = scores[index]
        if score.max() < 1:
            return
        top, left = np.unravel_index(score.argmax(), score.shape)
        height, width = _window_size(errors[index])
        yield index, slice(top, top + height), slice(left, left + width)
        overlapping_rows = slice(max(top - height + 1, 0), top + height)
        score[overlapping_rows, max(left - width + 1, 0) : left + width] = 0


def _window_scores(error):
    """By each window's first row and column: its errors, plus below 1 for errors amid it."""
    height, width = _window_size(error)
    sums = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    counts = sums[height:, width:] - sums[:-height, width:]
    counts += sums[:-height, :-width] - sums[height:, :-width]
    amid = ndimage.gaussian_filter(error.astype(float), _ZOOM_SIDE / 4, mode="constant")
    top, left = height // 2, width // 2
    return counts + 0.99 * amid[top : top + counts.shape[0], left : left + counts.shape[1]]


def _window_size(error):
    return tuple(min(_ZOOM_SIDE, side) for side in error.shape)


def _shown_size(shape):
    scale = min(1, _LONGEST_SIDE / max(shape))
    return tuple(max(1, round(side * scale)) for side in shape)


def _nearest(array, size):
    """The array [H, W, ...] at another size, each pixel that of the nearest one."""
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old // new, old - 1).astype(int)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def _magnified(array):
    return array.repeat(_ZOOM_SCALE, 0).repeat(_ZOOM_SCALE, 1)


def _bytes(values):
    return np.round(np.clip(values, 0, 255)).astype(np.uint8)


def _jpeg(pixels):
    return _address(imagecodecs.jpeg_encode(np.ascontiguousarray(pixels), level=85), "jpeg")


def _png(pixels):
    return _address(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=9), "png")
