"""An evaluation run: from a checkpoint and annotated images to scores, pictures and a report."""

import hashlib
import json
import logging
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.data.folder import read_folder
from unet_jax.data.isbi2012 import read_isbi2012_test
from unet_jax.data.sources import read_data
from unet_jax.data.splits import read_splits
from unet_jax.errors import InputError, RunFailed
from unet_jax.evaluation.instance_tuning import tune
from unet_jax.evaluation.report import Picture, left_out_words, save_report
from unet_jax.example import (
    IGNORED,
    Example,
    annotated_share,
    image_sha256,
    is_sparse,
    separated,
    sha256,
)
from unet_jax.figures import save_examples
from unet_jax.files.output import complete, writable_folder
from unet_jax.instances import SETTINGS, find_cells, read_settings
from unet_jax.metrics import Score
from unet_jax.metrics.scores import (
    baselines,
    class_scores,
    em_counts,
    em_scores,
    em_values,
    seg_score,
)
from unet_jax.metrics.warping import drawn
from unet_jax.model import Model
from unet_jax.overlap_tile import choose_tile_side, predict_tiled
from unet_jax.provenance import versions
from unet_jax.resizing import scaled_size
from unet_jax.run.log import read_log

logger = logging.getLogger("unet_jax")

#: Images that can be evaluated: what the run left out, what chose its best step, and the test
#: stack of the ISBI 2012 challenge.
SPLITS = ("held_out", "validation", "test")

_EXAMPLES_SHOWN = 8
_REPORT, _RESULT, _PICTURE = "report.html", "report.json", "examples.png"
# What is printed, with its title.
_METRICS = {
    "pixel_error": "pixel",
    "rand_error": "Rand",
    "warping_error": "warping",
    "v_rand": "V_rand",
    "v_info": "V_info",
    "seg": "SEG",
    "mean_iou": "IoU",
}
_ROWS = {
    "none": "this network",
    "rotations": "7 rotations averaged",
    "symmetries": "8 symmetries averaged",
}


def evaluate(
    workdir: Path,
    *,
    step: str,
    averaging: list[str],
    split: str,
    images: Path | None,
    labels: Path | None,
    mask_rule: str | None,
    out: Path | None,
    overwrite: bool,
) -> int:
    """Scores a checkpoint and writes `report.html`, `report.json` and `examples.png`.

    A cross-validation is scored as the ensemble of its folds; on the validation split, each fold's
    network is scored on the part that it was not trained on.

    Args:
      workdir: of the training run.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`; the report shows the last one and compares all of them.
      split: one of `SPLITS`.
      images: folder of images to use instead of the run's own.
      labels: folder of their masks.
      mask_rule: how to read the masks, see `read_folder`; by default as in training.
      out: folder to write to, by default `evaluation` or `evaluation_SPLIT` in `workdir`.
      overwrite: whether an evaluation that is there may be replaced.

    Returns:
      The exit status, 0.

    Raises:
      InputError: a checkpoint or data that cannot be used; nothing has been written.
    """
    members = checkpoint.load_members(workdir, step)
    settings, tuned = read_settings(workdir)
    log = read_log(workdir / "log.jsonl")
    if "config" not in members[0].description:
        raise InputError(f"{workdir}: its checkpoint says nothing of its training.")
    if images or labels or mask_rule:
        if images is None or labels is None or split != "held_out":
            raise InputError(
                "--images and --labels go together, --mask_rule with them, --split without them."
            )
        data, folder = str(images), "evaluation_images"
        parts = [(checkpoint.ensemble(members), _own(members[0], images, labels, mask_rule))]
    elif split == "test":
        data, folder = "test stack of the ISBI 2012 challenge", "evaluation_test"
        if members[0].description["config"]["data"]["source"] != "isbi2012":
            raise InputError(
                "--split=test is the ISBI 2012 challenge's test stack, for a run on that data; "
                "without --split the images that this run left out are scored."
            )
        parts = [(checkpoint.ensemble(members), read_isbi2012_test())]
    elif split == "validation":
        data, folder = "validation split of the run, which chose its step", "evaluation_validation"
        parts = _left_out(members)
    else:
        data, folder = "images that the run left out", "evaluation"
        parts = [(checkpoint.ensemble(members), _of_run(members[0], "test"))]
    examples = [example for _, part in parts for example in part]
    if all((example.labels == IGNORED).all() for example in examples):
        raise InputError(f"{data}: all pixels are ignored, expected some that count.")
    if out is None and (workdir / folder).is_symlink():
        raise InputError(f"{workdir / folder}: is a link, expected a folder; or give --out.")
    out = writable_folder(out or workdir / folder, (_REPORT, _RESULT, _PICTURE), overwrite)
    duplicates = [pair for model, part in parts for pair in _duplicates(model, part, split)]
    if duplicates:
        name, other, part = duplicates[0]
        logger.warning(
            "%d of %d images were seen in training or validation: %s is the same picture as %s "
            "(%s); their scores are too good.",
            *(len(duplicates), len(examples), name, other, part),
        )

    outlined = [separated(example) for example in examples]
    names = members[0].description["class_names"]
    scores = {}
    for name in averaging:
        began = time.perf_counter()
        probabilities = _predict(parts, name)
        seconds = time.perf_counter() - began
        cell = [1 - p[..., 0] for p in probabilities]
        cells = [find_cells(p, settings) for p in cell]
        counts = em_counts(outlined, cell)
        em = em_scores(counts)
        scores[name] = {
            **{metric: _curve(score) for metric, score in em.items()},
            "seg": seg_score(examples, cells),
            **class_scores(examples, probabilities, names),
            "prediction_seconds": round(seconds, 2),
        }

    description = members[0].description
    largest = max((e.labels.shape for e in examples), key=lambda shape: shape[0] * shape[1])
    result = {
        "checkpoint": str(workdir),
        "command": shlex.join(["python", *sys.argv]),
        "step": description["step"]
        if len(members) == 1
        else [m.description["step"] for m in members],
        "data": data,
        "split": "images" if images else split,
        "averaging": averaging[-1],
        "scores": scores,
        "annotated": annotated_share([example.labels for example in examples]),
        "sparse": is_sparse(examples),
        "duplicates": duplicates,
        "without_cells": sum(image.cells == 0 for image in counts),
        "with_one_cell": sum(image.cells == 1 for image in counts),
        "images": _image_scores(examples, probabilities, cells, counts, em, names),
        "folds": _fold_scores(parts, probabilities, cells, counts, names)
        if len(parts) > 1
        else None,
        "baselines": baselines(outlined),
        "instances": {**settings._asdict(), "tuned": tuned},
        "tile_side": choose_tile_side(members[0].network, *scaled_size(largest, members[0].scale)),
        "training": {
            "command": description.get("command"),
            "config": description["config"],
            "started_from": description.get("started_from"),
            "splits": description["splits"],
            "data_sha256": _digest_of_all(description.get("data", {})),
            "versions": description["versions"],
            "log": log,
        },
        "versions": versions(),
    }
    warping = em["warping_error"]  # where it is not defined, nothing is split or merged
    best = warping.thresholds.index(warping.threshold) if warping else 0
    pictures = [
        Picture(
            name=example.name,
            image=example.image,
            labels=truth.labels,
            cell=probability,
            found=probabilities[i].argmax(-1),
            split=split,
            merge=merge,
            true_cells=example.instances,
            found_cells=found_cells,
        )
        for i, (example, truth, probability, found_cells) in enumerate(
            zip(examples, outlined, cell, cells, strict=True)
        )
        for split, merge in [drawn(counts[i].warping[best], truth.labels.shape)]
    ]
    shown = slice(_EXAMPLES_SHOWN)
    threshold = (em["pixel_error"] or settings).threshold
    save_examples(
        out / _PICTURE, outlined[shown], probabilities[shown], description, threshold=threshold
    )
    _write_json(out / _RESULT, result)
    save_report(out / _REPORT, result, pictures)
    _print(result, out / _REPORT)
    return 0


def tune_instances(workdir: Path, *, step: str, averaging: str, overwrite: bool) -> int:
    """Chooses how single cells are found, on the validation split, and writes `instances.json`.

    In a cross-validation each fold's network predicts the part that it was not trained on.

    Args:
      workdir: of the training run; later evaluations of it go by what is written.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      overwrite: whether earlier settings may be replaced.

    Returns:
      The exit status, 0.

    Raises:
      InputError: a checkpoint or data that cannot be used; nothing has been written.
    """
    parts = _left_out(checkpoint.load_members(workdir, step))
    writable_folder(workdir, (SETTINGS,), overwrite)
    examples = [example for _, part in parts for example in part]
    if not any(example.instances.any() for example in examples):
        raise InputError("No image of the validation split has an annotated cell to tune on.")
    probabilities = _predict(parts, averaging)
    settings, score = tune(examples, [1 - p[..., 0] for p in probabilities])
    record = {
        **settings._asdict(),
        "seg_on_validation": score,
        "step": step,
        "averaging": averaging,
        "images": [example.name for example in examples],
    }
    _write_json(workdir / SETTINGS, record)
    print(f"{workdir / SETTINGS}: SEG {score:.4f} on {len(examples)} validation images with")
    print(", ".join(f"{name} {value:g}" for name, value in settings._asdict().items()))
    return 0


def _own(model: Model, images, labels, mask_rule) -> list[Example]:
    data = model.description["config"]["data"]
    return read_folder(
        images,
        labels,
        mask_rule=mask_rule or data.get("mask_rule", "binary"),
        classes=model.network.classes,
        ignore_value=data.get("ignore_value", -1),
        minus_one=data.get("minus_one", ""),
        channels=model.channels,
    )


def _of_run(model: Model, split: str) -> list[Example]:
    """A split as it was when the run began, whatever has come into its folder since."""
    splits = read_splits(read_data(model.description["config"]["data"]), model.network.classes)
    present = {example.name: example for examples in splits.values() for example in examples}
    names = model.description["splits"][split]
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(f"{missing[0]} of the run's {split} split is not in its data any more.")
    digests = model.description.get("data", {})
    for name in names:
        if name in digests and sha256(present[name]) != digests[name]:
            logger.warning("%s: its pixels are not those of the training run's data.", name)
    return [present[name] for name in names]


def _duplicates(model: Model, examples: list[Example], split: str) -> list[tuple[str, str, str]]:
    """Pictures that the network was trained or validated on: their names here and there, the split.

    An older run has no digests of images: a picture is known there with the same mask only.
    """
    description = model.description
    if "images" in description:
        digests, here = description["images"], [image_sha256(e.image) for e in examples]
    else:
        digests, here = description.get("data", {}), [sha256(e) for e in examples]
    known = {
        str(digests.get(str(name))): (name, part)
        for part in (("train",) if split == "validation" else ("validation", "train"))
        for name in description["splits"][part]
    }
    return [
        (e.name, *known[digest])
        for e, digest in zip(examples, here, strict=True)
        if digest in known
    ]


def _digest_of_all(digests: dict[str, str]) -> str | None:
    """One SHA-256 for all examples of a run; None if it did not record any."""
    if not digests:
        return None
    lines = "".join(f"{digest} {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _left_out(members: list[Model]) -> list[tuple[Model, list[Example]]]:
    """Each network with its validation split."""
    return [(member, _of_run(member, "validation")) for member in members]


def _predict(parts: list[tuple[Model, list[Example]]], averaging: str) -> list[np.ndarray]:
    """float32 [H, W, classes] for each example of all parts."""
    pairs = [(model, example.image) for model, examples in parts for example in examples]
    progress = tqdm(pairs, desc="Evaluating", unit="image", delay=3)
    probabilities = [predict_tiled(model, image, averaging=averaging) for model, image in progress]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise RunFailed("The network's output is not finite; use another --step.")
    return probabilities


def _curve(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    fields = ("value", "threshold", "thresholds", "values")
    return {field: getattr(score, field) for field in fields}


def _image_scores(examples, probabilities, cells, counts, em, names) -> list[dict[str, Any]]:
    """The scores of single images, at the thresholds that are best for all of them."""
    rows = []
    for example, probability, found, of_image in zip(
        examples, probabilities, cells, counts, strict=True
    ):
        seg = seg_score([example], [found])
        rows.append(
            {
                "name": example.name,
                **em_values(of_image, em),
                "seg": seg and seg["value"],
                "mean_iou": class_scores([example], [probability], names)["mean_iou"]["value"],
                "cells": len(np.unique(example.instances[example.instances > 0])),
                "found_cells": int(found.max()),
            }
        )
    return rows


def _fold_scores(parts, probabilities, cells, counts, names) -> list[dict[str, Any]]:
    """The scores of each fold's network on the part that it was not trained on."""
    rows, start = [], 0
    for _, examples in parts:
        part = slice(start, start + len(examples))
        em = em_scores(counts[part])
        seg = seg_score(examples, cells[part])
        rows.append(
            {
                "images": [example.name for example in examples],
                **{metric: score and score.value for metric, score in em.items()},
                "seg": seg and seg["value"],
                "mean_iou": class_scores(examples, probabilities[part], names)["mean_iou"]["value"],
            }
        )
        start = part.stop
    return rows


def _write_json(file: Path, record: dict[str, Any]) -> None:
    with complete(file) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _print(result: dict[str, Any], report: Path) -> None:
    print(f"{len(result['images'])} {result['data']}, step {result['step']}:")
    rows = dict(result["scores"]) | result["baselines"]
    metrics = _METRICS
    if result["sparse"]:
        print(
            f"{100 * result['annotated']:.1f} % of the pixels are annotated, and only those are "
            "scored; there are no whole cells to score."
        )
        metrics = {name: _METRICS[name] for name in ("pixel_error", "mean_iou")}
    print(f"{'':22}" + "".join(f"{title:>10}" for title in metrics.values()))
    for name, scores in rows.items():
        values = [scores[metric]["value"] if scores.get(metric) else None for metric in metrics]
        cells = [f"{'-':>10}" if value is None else f"{value:10.4g}" for value in values]
        print(f"{_ROWS.get(name, name):22}" + "".join(cells))
    if not result["sparse"] and (left_out := left_out_words(result["images"])):
        print(left_out)
    if result["folds"]:
        for metric, title in metrics.items():
            values = [fold[metric] for fold in result["folds"] if fold[metric] is not None]
            if len(values) > 1:
                mean, spread = np.mean(values), np.std(values, ddof=1)
                print(
                    f"{title} over {len(values)} folds: {mean:.4g}, standard deviation {spread:.2g}"
                )
    print(f"Open {report}")
