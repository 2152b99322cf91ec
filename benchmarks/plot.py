"""Draws docs/benchmarks.png, fine_tuning.png and recipes.png: python -m benchmarks.plot

All from what lies in benchmarks/results.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

_COLOURS = {
    "ours": "#c0392b",
    "PyTorch": "#5b7fa6",
    "PyTorch compiled": "#274b6d",
    "MONAI": "#8a8a8a",
    "one patch a pixel": "#c9c9c9",
}
# Name and colour of each way to start, and its shift along the axis, so that all points are seen.
_STARTS = {
    "random": ("from scratch", "#5b7fa6", -0.06),
    "pretrained": ("fine-tuned", "#c0392b", 0),
    "frozen": ("fine-tuned, contracting path frozen", "#e0a030", 0.06),
}

# For ISBI 2012: validations of the runs of a recipe, colour, and CPU seconds for a step.
_RECIPES = {
    "SGD, width 16": (["em_small_sgd/validation"], "#8a8a8a", 1.204),
    "Adam and average, width 24": (
        ["em_small/validation_0", "em_small/validation_1"],
        "#c0392b",
        0.372,
    ),
    "Adam and average, width 32": (["em_evening/validation"], "#274b6d", 0.799),
}


def read(name):
    """The rows of a benchmark."""
    file = Path("benchmarks/results", f"{name}.json")
    return json.loads(file.read_text())["rows"]


def draw_speed():
    """Training step, prediction and time to accuracy side by side."""
    figure, (step, prediction, accuracy) = plt.subplots(
        1, 3, figsize=(13, 3.6), layout="constrained"
    )
    for name, offset in (("ours", -0.25), ("PyTorch", 0), ("PyTorch compiled", 0.25)):
        rows = [row for row in read("training_step") if row["contestant"] == name]
        places = [i + offset for i in range(len(rows))]
        heights = [row["images_per_second"] for row in rows]
        bars = step.bar(places, heights, 0.25, label=name, color=_COLOURS[name])
        step.bar_label(bars, fmt="%.2g", fontsize=8)
    step.set_xticks(range(len(rows)), [f"width {row['width']}" for row in rows])
    step.set(title="Training, tiles of 572x572 a second", yscale="log")
    step.yaxis.set_visible(False)
    step.spines["left"].set_visible(False)

    for name, colour in _COLOURS.items():
        rows = [row for row in read("prediction") if row["contestant"] == name]
        if rows:
            sides, speeds = zip(
                *((row["side"], row["megapixels_per_second"]) for row in rows), strict=True
            )
            prediction.plot(sides, speeds, "o-", label=name, color=colour)
    prediction.set(title="Prediction, width 16", xlabel="side of the image, pixels")
    prediction.set(ylabel="megapixels a second", xscale="log", yscale="log")
    sides = (512, 2048, 8192)
    prediction.set_xticks(sides, [f"{side:,}" for side in sides])
    prediction.minorticks_off()

    for name in ("ours", "PyTorch"):
        rows = [r for r in read("time_to_accuracy") if r["contestant"] == name and "error" in r]
        seconds, errors = zip(*((row["seconds"], row["error"]) for row in rows), strict=True)
        accuracy.plot(seconds, errors, label=name, color=_COLOURS[name])
    accuracy.set(title="ISBI 2012, held-out slices", xlabel="seconds of training")
    accuracy.set(ylabel="pixel error", ylim=(0.04, 0.12))
    for axes in (step, prediction, accuracy):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig("docs/benchmarks.png", dpi=100)


def draw_fine_tuning():
    """Errors on the test slices by the number of annotated ones; points are seeds, lines means."""
    rows = read("fine_tuning")
    counts = sorted({row["slices"] for row in rows})
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, metric in zip(both, ("pixel_error", "rand_error"), strict=True):
        for start, (name, colour, offset) in _STARTS.items():
            errors = {
                place + offset: [
                    row[metric] for row in rows if (row["start"], row["slices"]) == (start, count)
                ]
                for place, count in enumerate(counts)
            }
            errors = {place: values for place, values in errors.items() if values}
            for place, values in errors.items():
                axes.plot([place] * len(values), values, "o", color=colour, alpha=0.5, ms=5)
            means = [np.mean(values) for values in errors.values()]
            axes.plot(errors.keys(), means, "_-", ms=14, label=name, color=colour)
        axes.set_xticks(range(len(counts)), counts)
        axes.set(title=f"{metric.split('_')[0].title()} error", xlabel="annotated slices")
        axes.margins(y=0.3)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    both[1].legend(frameon=False, fontsize=8)
    figure.savefig("docs/fine_tuning.png", dpi=100)


def draw_recipes():
    """Errors on the validation slices of ISBI 2012 by the processor's time."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axes, metric in zip(both, ("pixel_error", "rand_error"), strict=True):
        for name, (files, colour, seconds) in _RECIPES.items():
            for number, file in enumerate(files):
                lines = Path("benchmarks/results", f"{file}.jsonl").read_text().splitlines()
                rows = [json.loads(line) for line in lines]
                minutes = [row["step"] * seconds / 60 for row in rows]
                errors = [row["validation"][metric] for row in rows]
                label = None if number else name
                axes.plot(minutes, errors, ".-", label=label, color=colour, lw=1, ms=4)
        axes.set(title=f"{metric.split('_')[0].title()} error", xlabel="minutes of one CPU core")
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylim(0.04, 0.07)
    both[1].set_ylim(0, 0.4)
    both[1].legend(frameon=False, fontsize=8)
    figure.savefig("docs/recipes.png", dpi=100)


def main():
    """Draws all."""
    draw_speed()
    draw_fine_tuning()
    draw_recipes()


if __name__ == "__main__":
    main()
