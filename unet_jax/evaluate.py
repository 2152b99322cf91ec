"""An evaluation run: from a checkpoint and annotated images to scores, pictures and a report."""

import hashlib
import json
import logging
import os
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
from unet_jax.data.splits import read_splits
from unet_jax.environment import versions
from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.example import IGNORED, Example, scaled_size, separated, sha256
from unet_jax.figures import save_examples
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.model import Model
from unet_jax.output_files import complete
from unet_jax.overlap_tile import choose_tile_side, predict_tiled
from unet_jax.plain_files import read_small
from unet_jax.report import Picture, save_report
from unet_jax.run_log import read_log
from unet_jax.scores import baselines, class_scores, em_scores, seg_score
from unet_jax.tuning import tune

logger = logging.getLogger("unet_jax")

#: Images that can be evaluated: what the run left out, what chose its best step, and the test
#: stack of the ISBI 2012 challenge.
SPLITS = ("held_out", "validation", "test")

_EXAMPLES_SHOWN = 8
_INSTANCES = "instances.json"
_REPORT, _RESULT, _PICTURE = "report.html", "report.json", "examples.png"
# What is printed, with its title.
_METRICS = {
    "pixel_error": "pixel",
    "rand_error": "Rand",
    "warping_error": "warping",
    "v_rand": "V_rand",
    "v_info": "V_info",
    "seg": "SEG",
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
    settings, tuned = _instance_settings(workdir)
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
    out = _writable(out or workdir / folder, (_REPORT, _RESULT, _PICTURE), overwrite)

    outlined = [separated(example) for example in examples]
    scores = {}
    for name in averaging:
        began = time.perf_counter()
        probabilities = _predict(parts, name)
        seconds = time.perf_counter() - began
        cell = [1 - p[..., 0] for p in probabilities]
        cells = [find_cells(p, settings) for p in cell]
        em = em_scores(outlined, cell)
        scores[name] = {
            **{metric: _curve(score) for metric, score in em.items()},
            "seg": seg_score(examples, cells),
            "intersection_over_union": class_scores(
                examples, probabilities, members[0].description["class_names"]
            ),
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
        "images": _image_scores(examples, outlined, cell, cells, em),
        "folds": _fold_scores(parts, cell, cells) if len(parts) > 1 else None,
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
    pictures = [
        Picture(
            name=example.name,
            image=example.image,
            labels=truth.labels,
            cell=probability,
            split=_crop(em["warping_error"].split[i], example),
            merge=_crop(em["warping_error"].merge[i], example),
            true_cells=example.instances,
            found_cells=found,
        )
        for i, (example, truth, probability, found) in enumerate(
            zip(examples, outlined, cell, cells, strict=True)
        )
    ]
    shown = slice(_EXAMPLES_SHOWN)
    threshold = em["pixel_error"].threshold
    save_examples(out / _PICTURE, outlined[shown], probabilities[shown], threshold=threshold)
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
    _writable(workdir, (_INSTANCES,), overwrite)
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
    _write_json(workdir / _INSTANCES, record)
    print(f"{workdir / _INSTANCES}: SEG {score:.4f} on {len(examples)} validation images with")
    print(", ".join(f"{name} {value:g}" for name, value in settings._asdict().items()))
    return 0


def _instance_settings(workdir: Path) -> tuple[InstanceSettings, bool]:
    """What `tune_instances` has chosen, or else the defaults; and whether it was tuned."""
    file = workdir / _INSTANCES
    try:
        record = json.loads(read_small(file))
        values = [float(record[name]) for name in InstanceSettings._fields]
    except FileNotFoundError:
        return InstanceSettings(), False
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: is damaged ({one_line(error)}); run --tune again.") from None
    return InstanceSettings(*values), True


def _own(model: Model, images, labels, mask_rule) -> list[Example]:
    data = model.description["config"]["data"]
    return read_folder(
        images,
        labels,
        mask_rule=mask_rule or data.get("mask_rule", "binary"),
        classes=model.network.classes,
        ignore_value=data.get("ignore_value", -1),
        channels=model.channels,
    )


def _of_run(model: Model, split: str) -> list[Example]:
    """A split as it was when the run began, whatever has come into its folder since."""
    splits = read_splits(model.description["config"]["data"], model.network.classes)
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


def _curve(score) -> dict[str, Any]:
    fields = ("value", "threshold", "thresholds", "values")
    return {field: getattr(score, field) for field in fields}


def _image_scores(examples, outlined, cell, cells, em) -> list[dict[str, Any]]:
    """The scores of single images, at the thresholds that are best for all of them."""
    rows = []
    for example, truth, probability, found in zip(examples, outlined, cell, cells, strict=True):
        alone = em_scores([truth], [probability])
        seg = seg_score([example], [found])
        rows.append(
            {
                "name": example.name,
                **{
                    metric: score.values[score.thresholds.index(em[metric].threshold)]
                    for metric, score in alone.items()
                },
                "seg": seg and seg["value"],
                "cells": len(np.unique(example.instances[example.instances > 0])),
                "found_cells": int(found.max()),
            }
        )
    return rows


def _fold_scores(parts, cell, cells) -> list[dict[str, Any]]:
    """The scores of each fold's network on the part that it was not trained on."""
    rows, start = [], 0
    for _, examples in parts:
        part = slice(start, start + len(examples))
        em = em_scores([separated(example) for example in examples], cell[part])
        seg = seg_score(examples, cells[part])
        rows.append(
            {
                "images": [example.name for example in examples],
                **{metric: score.value for metric, score in em.items()},
                "seg": seg and seg["value"],
            }
        )
        start = part.stop
    return rows


def _crop(array: np.ndarray, example: Example) -> np.ndarray:
    """Without what `em_stack` filled up."""
    height, width = example.labels.shape
    return array[:height, :width]


def _writable(folder: Path, names: tuple[str, ...], overwrite: bool) -> Path:
    """The folder, made if need be, once it is sure that files of these names can be written."""
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise InputError(f"{folder / name}: is there already; --overwrite replaces it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}).") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to.")
    return folder


def _write_json(file: Path, record: dict[str, Any]) -> None:
    with complete(file) as unfinished:
        unfinished.write_text(json.dumps(record, indent=1) + "\n")


def _print(result: dict[str, Any], report: Path) -> None:
    print(f"{len(result['images'])} {result['data']}, step {result['step']}:")
    rows = dict(result["scores"]) | result["baselines"]
    print(f"{'':22}" + "".join(f"{title:>10}" for title in _METRICS.values()))
    for name, scores in rows.items():
        values = [scores[metric]["value"] if scores.get(metric) else None for metric in _METRICS]
        cells = [f"{'-':>10}" if value is None else f"{value:10.4g}" for value in values]
        print(f"{_ROWS.get(name, name):22}" + "".join(cells))
    if result["folds"]:
        for metric, title in _METRICS.items():
            values = [fold[metric] for fold in result["folds"] if fold[metric] is not None]
            if len(values) > 1:
                mean, spread = np.mean(values), np.std(values, ddof=1)
                print(
                    f"{title} over {len(values)} folds: {mean:.4g}, standard deviation {spread:.2g}"
                )
    print(f"Open {report}")
