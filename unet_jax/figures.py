"""The pictures that training and evaluation write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy import ndimage

from unet_jax.errors import printable
from unet_jax.example import IGNORED, Example
from unet_jax.files.output import complete

SPLIT_COLOUR = "#d62728"
MERGE_COLOUR = "#1f77b4"
IGNORED_COLOUR = "#888888"
#: Where single pixels differ, but do not split or merge.
PALE_SPLIT_COLOUR = "#ed9e9e"
PALE_MERGE_COLOUR = "#9ac2dd"
#: Found cells that match none of the annotated ones, or more than one.
UNMATCHED_COLOUR = "#9e9e9e"
SEVERAL_COLOUR = "#ffffff"
TRUTH_COLOUR = "#ffd400"
# Right background, right cell, missed background (merges cells), false background (splits them),
# ignored: distinct also for those who do not see red and green apart.
_ERROR_COLOURS = ListedColormap(["black", "white", MERGE_COLOUR, SPLIT_COLOUR, IGNORED_COLOUR])

_NAME_SHOWN = 30  # characters that fit beside a picture


def save_examples(
    file: Path,
    examples: Sequence[Example],
    probabilities: Sequence[np.ndarray],
    class_names: Sequence[str],
    colours: np.ndarray,
    *,
    threshold: float = 0.5,
) -> None:
    """Draws a row for each example: image, truth, what the network finds, and where they disagree.

    What it finds is the probability of cell for two classes, the most probable class for more.

    Args:
      file: PNG to write.
      examples: at least one.
      probabilities: float [H, W, classes] for each.
      class_names: by class.
      colours: of the classes, see `class_colours`.
      threshold: of the probability of cell, 1 - p(class 0), for the last column if there are two
        classes.
    """
    several = len(colours) > 2
    figure = Figure(figsize=(13, 3.4 * len(examples)), layout="constrained")
    rows = figure.subplots(len(examples), 4, squeeze=False)
    titles = ["image", "truth", "probability of cell", "errors: red splits, blue merges"]
    if several:
        titles[2:] = ["most probable class", "red: not the true class"]
        _add_legend(figure, class_names, colours)
    for axes, title in zip(rows[0], titles, strict=True):
        axes.set_title(title)
    for axes, example, probability in zip(rows, examples, probabilities, strict=True):
        image = example.image if example.image.ndim == 2 else example.image.mean(-1)
        low, high = np.percentile(image, [0.5, 99.5])
        axes[0].imshow(image, cmap="gray", vmin=low, vmax=high)
        axes[1].imshow(class_picture(example.labels, colours))
        if several:
            found = probability.argmax(-1)
            axes[2].imshow(class_picture(found, colours))
            axes[3].imshow(class_error_picture(example.labels, found))
        else:
            cell = 1 - probability[..., 0]
            axes[2].imshow(cell, cmap="gray", vmin=0, vmax=1)
            axes[3].imshow(
                error_map(example.labels, cell > threshold), cmap=_ERROR_COLOURS, vmin=0, vmax=4
            )
        axes[0].set_ylabel(printable(example.name[:_NAME_SHOWN]), parse_math=False)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    with complete(file) as unfinished:
        figure.savefig(unfinished, dpi=110)


def _add_legend(figure: Figure, names: Sequence[str], colours: np.ndarray) -> None:
    # The space is for names that begin with an underscore, which matplotlib would leave out.
    patches = [
        Patch(facecolor=colour / 255, edgecolor="grey", label=f" {name[:_NAME_SHOWN]}")
        for name, colour in zip(names, colours, strict=True)
    ]
    legend = figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a $ in a name is no formula


def save_training_curves(file: Path, rows: list[dict[str, Any]]) -> None:
    """Draws the losses of training and validation, and the validation errors, against the step.

    Args:
      file: PNG to write.
      rows: of the run's log.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, errors = figure.subplots(1, 2)
    draw_losses(losses, rows)
    draw_validation_errors(errors, rows)
    with complete(file) as unfinished:
        figure.savefig(unfinished, dpi=110)


def draw_losses(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draws the losses of training and validation against the step, from a run's log."""
    training = [row for row in rows if "loss" in row]
    validation = [row for row in rows if "validation" in row]
    # The loss of single tiles is too noisy to see anything: means of a fiftieth of the run.
    group = max(1, len(training) // 50)
    whole = len(training) // group * group
    steps, values = (
        np.array([row[key] for row in training[:whole]]).reshape(-1, group).mean(1)
        for key in ("step", "loss")
    )
    axes.plot(steps, values, label="training, augmented")
    if validation:
        steps = [row["step"] for row in validation]
        axes.plot(steps, [r["validation"]["loss"] for r in validation], "o-", label="validation")
    axes.set(xlabel="step", ylim=(0, None), title="weighted cross-entropy per pixel")
    axes.legend()


def draw_validation_errors(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Draws the errors on the validation split; nothing before the first validation."""
    validation = [row for row in rows if "validation" in row]
    if not validation:
        return
    steps = [row["step"] for row in validation]
    for name, label in (
        ("pixel_error", "pixel error"),
        ("rand_error", "Rand error"),
        ("mean_iou", "1 − mean IoU"),
    ):
        values = np.array([row["validation"].get(name, np.nan) for row in validation])
        if not np.isnan(values).all():
            values = 1 - values if name == "mean_iou" else values
            axes.plot(steps, values, "o-", label=label)
    axes.set(xlabel="step", ylim=(0, None), title="validation errors")
    axes.legend()


def error_map(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """What is right and wrong about each pixel.

    Args:
      labels: int [H, W], the class of each pixel or `IGNORED`.
      predicted: bool [H, W], cell.

    Returns:
      int [H, W]: 0 = correct background, 1 = correct cell, 2 = missed background, 3 = false
      background, 4 = ignored.
    """
    truth = labels > 0
    wrong = np.where(predicted, 2, 3)
    return np.where(labels == IGNORED, 4, np.where(truth == predicted, truth, wrong))


def error_picture(
    labels: np.ndarray, predicted: np.ndarray, split: np.ndarray, merge: np.ndarray, *, widen: int
) -> np.ndarray:
    """Pale colours where pixels differ, bright ones where cells are split or merged.

    Args:
      labels: int [H, W], the class of each pixel or `IGNORED`.
      predicted: bool [H, W], cell.
      split: bool [H, W], predicted background that splits a cell.
      merge: bool [H, W], predicted cell that merges two.
      widen: pixels by which splits and merges are drawn wider on each side.

    Returns:
      uint8 [H, W, 3].
    """
    picture = _rgb("black", "white", PALE_MERGE_COLOUR, PALE_SPLIT_COLOUR, IGNORED_COLOUR)[
        error_map(labels, predicted)
    ]
    for places, colour in ((split, SPLIT_COLOUR), (merge, MERGE_COLOUR)):
        picture[ndimage.maximum_filter(places, 2 * widen + 1)] = _rgb(colour)
    return picture


def class_picture(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of the class of each pixel or `IGNORED`, see `class_colours`."""
    # The last colour is that of IGNORED = -1.
    return np.vstack([colours, _rgb(IGNORED_COLOUR)])[labels]


def class_error_picture(labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: white where the class found is the true one, red elsewhere, ignored grey.

    Args:
      labels: int [H, W], the class of each pixel or `IGNORED`.
      found: int [H, W], the most probable class.
    """
    colours = _rgb("white", SPLIT_COLOUR, IGNORED_COLOUR)
    return colours[np.where(labels == IGNORED, 2, labels != found)]


def class_colours(classes: int, colours: Sequence[str] = ()) -> np.ndarray:
    """The colours of the classes in all pictures: those given, or the usual ones.

    The usual ones are black for the background, white for a single other class.

    Args:
      classes: number of them.
      colours: one for each, as Matplotlib takes them.

    Returns:
      uint8 [classes, 3].
    """
    if colours:
        return _rgb(*colours)
    return np.vstack([_rgb("black"), _palette(classes - 1) if classes > 2 else _rgb("white")])


def cell_colours(true: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours for the annotated cells, and for the found ones, which match them.

    A found cell matches an annotated one as in SEG, by covering more than half of it.

    Args:
      true: int [H, W], the cell each pixel belongs to, 0 = none.
      found: int [H, W], the same for the cells found.

    Returns:
      Two uint8 [largest number + 1, 3], indexed by the numbers of the cells.
    """
    from unet_jax.metrics.seg import matches  # Numba, slow to load, comes with the metrics

    true_colours = colours_by_number(true)
    found_colours = np.tile(_rgb(UNMATCHED_COLOUR), (found.max() + 1, 1))
    ids, numbers, _ = matches(true, found)
    ids, numbers = ids[numbers > 0], numbers[numbers > 0]
    found_colours[numbers] = true_colours[ids]
    numbers, times = np.unique(numbers, return_counts=True)
    found_colours[numbers[times > 1]] = _rgb(SEVERAL_COLOUR)
    return true_colours, found_colours


def colours_by_number(cells: np.ndarray) -> np.ndarray:
    """uint8 [largest number + 1, 3]: a colour for each cell of int [H, W], 0 black."""
    colours = np.zeros((cells.max() + 1, 3), np.uint8)
    numbers = np.unique(cells[cells > 0])
    colours[numbers] = _palette(len(numbers))
    return colours


def numbered_picture(instances: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: each cell of `instances`, int [H, W], in its own colour, 0 black."""
    ids, cells = np.unique(instances, return_inverse=True)
    colours = np.vstack([_rgb("black"), _palette(len(ids))])
    return colours[cells.reshape(instances.shape) + (ids[0] != 0)]


def cell_picture(grey: np.ndarray, cells: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """An image overlaid with its cells in colour.

    Args:
      grey: uint8 [H, W].
      cells: int [H, W], the cell each pixel belongs to, 0 = none.
      colours: uint8 [largest number + 1, 3].

    Returns:
      uint8 [H, W, 3].
    """
    picture = np.repeat(grey[..., None], 3, axis=-1)
    inside = cells > 0
    picture[inside] = picture[inside] // 2 + colours[cells[inside]] // 2
    edges = inside & _edges(cells)
    picture[edges] = colours[cells[edges]]
    return picture


def outlined(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: an image, uint8 [H, W], with the outline of a mask, bool [H, W]."""
    picture = np.repeat(grey[..., None], 3, axis=-1)
    picture[_edges(mask.astype(np.uint8))] = _rgb(TRUTH_COLOUR)
    return picture


def grey_values(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W] from an image [H, W] or [H, W, C]: the channels' mean, contrast stretched."""
    image = image.reshape(*image.shape[:2], -1).mean(-1, dtype=np.float32)
    low, high = np.percentile(image, [0.5, 99.5])
    scaled = (image - low) / max(high - low, np.finfo(np.float32).tiny)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)


def _edges(array: np.ndarray) -> np.ndarray:
    """bool [H, W]: a pixel beside it differs."""
    cross = ndimage.generate_binary_structure(2, 1)
    return ndimage.maximum_filter(array, footprint=cross) != ndimage.minimum_filter(
        array, footprint=cross
    )


def _palette(count: int) -> np.ndarray:
    """uint8 [count, 3] colours of which neighbours differ."""
    k = np.arange(count)
    hue = 0.618034 * k % 1
    saturation = np.array([0.65, 0.9, 0.45])[k % 3]
    value = np.array([1.0, 0.85, 0.95, 0.7])[k % 4]
    colours = hsv_to_rgb(np.stack([hue, saturation, value], axis=-1))
    return np.round(255 * colours).astype(np.uint8)


def _rgb(*colours: str) -> np.ndarray:
    """uint8 [len(colours), 3]."""
    return np.round(255 * np.array([to_rgb(colour) for colour in colours])).astype(np.uint8)
