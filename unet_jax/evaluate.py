"""An evaluation run: from a checkpoint and annotated images to scores and a picture."""

import json
import os
import time
from pathlib import Path

from tqdm import tqdm

from unet_jax import checkpoint
from unet_jax.data.folder import read_folder
from unet_jax.data.splits import read_splits
from unet_jax.environment import versions
from unet_jax.errors import InputError
from unet_jax.example import Example
from unet_jax.figures import save_examples
from unet_jax.model import Model
from unet_jax.overlap_tile import choose_tile_side, predict_tiled
from unet_jax.scores import baselines, class_scores, em_errors

_EXAMPLES_SHOWN = 8


def evaluate(
    workdir: Path,
    *,
    step: str,
    averaging: str,
    images: Path | None,
    labels: Path | None,
    mask_rule: str | None,
    out: Path | None,
) -> int:
    """Scores a checkpoint and writes `AVERAGING.json` and `AVERAGING.png`.

    Args:
      workdir: of the training run.
      step: see `checkpoint.load`.
      averaging: see `predict_tiled`.
      images: folder of images to use instead of the test split that the run left out.
      labels: folder of their masks.
      mask_rule: how to read the masks, see `read_folder`; by default as in training.
      out: folder to write to, by default `evaluation` in `workdir`.

    Returns:
      The exit status, 0.

    Raises:
      InputError: a checkpoint or data that cannot be used; nothing has been written.
    """
    model = checkpoint.load(workdir, step)
    examples = _examples(model, images, labels, mask_rule)
    out = out or workdir / "evaluation"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror}).") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"{out}: cannot be written to.")
    began = time.perf_counter()
    probabilities = [
        predict_tiled(model, e.image, averaging=averaging)
        for e in tqdm(examples, desc="Evaluating", unit="image", delay=3)
    ]
    seconds = time.perf_counter() - began

    scores = em_errors(examples, [1 - p[..., 0] for p in probabilities])
    largest = max((e.labels.shape for e in examples), key=lambda shape: shape[0] * shape[1])
    result = {
        "checkpoint": str(workdir),
        "step": model.description["step"],
        "data": str(images) if images else "test split of the run",
        "examples": [e.name for e in examples],
        "averaging": averaging,
        "tile_side": choose_tile_side(model.network, *largest),
        "prediction_seconds": round(seconds, 2),
        **scores,
        **class_scores(examples, probabilities, model.description["class_names"]),
        "baselines": baselines(examples),
        "versions": versions(),
    }
    threshold = scores["pixel_error"]["threshold"]
    shown = slice(_EXAMPLES_SHOWN)
    save_examples(
        out / f"{averaging}.png", examples[shown], probabilities[shown], threshold=threshold
    )
    unfinished = out / f"{averaging}.json.unfinished"
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(out / f"{averaging}.json")

    print(f"{len(examples)} images, step {result['step']}, averaging {averaging}:")
    print(f"{'':22}{'pixel error':>12}{'Rand error':>12}")
    for name, row in {"this network": scores, **result["baselines"]}.items():
        pixel, rand = row["pixel_error"]["value"], row["rand_error"]["value"]
        print(f"{name:22}{pixel:12.4f}{rand:12.4f}")
    print(f"Written to {out}: {averaging}.json, {averaging}.png")
    return 0


def _examples(model: Model, images, labels, mask_rule) -> list[Example]:
    data = model.description["config"]["data"]
    classes = model.network.classes
    if images is None and labels is None and mask_rule is None:
        return _held_out(model)
    if images is None or labels is None:
        raise InputError("--images and --labels go together, and --mask_rule with them.")
    return read_folder(
        images,
        labels,
        mask_rule=mask_rule or data.get("mask_rule", "binary"),
        classes=classes,
        ignore_value=data.get("ignore_value", -1),
        channels=model.channels,
    )


def _held_out(model: Model) -> list[Example]:
    """The test split as it was when the run began, whatever has come into its folder since."""
    splits = read_splits(model.description["config"]["data"], model.network.classes)
    present = {example.name: example for examples in splits.values() for example in examples}
    names = model.description["splits"]["test"]
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(f"{missing[0]} of the run's test split is not in its data any more.")
    return [present[name] for name in names]
