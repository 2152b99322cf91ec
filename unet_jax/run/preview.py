"""A look at the data before training: what the network will see, and what was found in it."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from unet_jax.augmentation import Tile, augment, tile_coordinates
from unet_jax.configuration import Configuration, TrainSettings, read_configuration
from unet_jax.data.findings import cell_diameters, doubts, finding, table
from unet_jax.data.splits import read_run
from unet_jax.errors import printable
from unet_jax.example import IGNORED, Example
from unet_jax.figures import (
    IGNORED_COLOUR,
    TRUTH_COLOUR,
    class_colours,
    class_picture,
    grey_values,
    numbered_picture,
)
from unet_jax.files.output import complete, complete_text, probe
from unet_jax.network import context
from unet_jax.train_step import tile_keys
from unet_jax.training_images import AnnotatedImages, annotated_images, batch_indices, take
from unet_jax.training_loop import draw, training_key
from unet_jax.unread import pixels_of
from unet_jax.weight_map import balanced, weight_maps

_TILES = 2  # of each example
_DETAIL = 64, 160  # pixels, least and largest side of the enlarged part
_SHOWN_PIXELS = 1000  # along an axis; of larger images each n-th pixel is drawn
_GRID_COLOUR = "#00d0e8"


@dataclass(frozen=True)
class Preview:
    """The result of `preview`.

    Attributes:
      text: a table of the data, what the network sees, and the doubts.
      doubts: what looks wrong, a sentence each.
      picture: the file of the picture.
    """

    text: str
    doubts: list[str]
    picture: Path

    def __str__(self):
        """What to tell the user."""
        return (
            f"{self.text}\n\nLook at {self.picture} before training. This text is also in "
            "preview.txt next to it."
        )


def preview(config: Mapping[str, Any] | Configuration, workdir: str | Path) -> Preview:
    """Shows a run's data without training: writes `preview.png` and `preview.txt` to `workdir`.

    The picture has three examples of the training split: those with the least, the median and the
    most background. Their tiles are the first ones that the run will train on.

    Both replace the files of an earlier call without asking: you look, fix the masks and look
    again, and nothing is lost that the same command would not make again. Nothing else in `workdir`
    is touched, and a run can start or continue there.

    Args:
      config: the settings, such as from `named_config`.
      workdir: the run's folder.

    Raises:
      InputError: as for `fit.fit`; nothing has been written.
    """
    workdir, configuration = Path(workdir), read_configuration(config)
    classes = configuration.model.classes
    stored, seen = read_run(configuration.data, classes)
    findings = {
        split: [finding(e, classes) for e in examples] for split, examples in stored.items()
    }
    found = doubts(stored, configuration, findings["train"])
    text = "\n\n".join(
        [
            table(findings, stored, configuration.class_names),
            textwrap.fill(_view(configuration), 100),
            *(textwrap.fill(f"Warning: {w}", 100) for w in found),
        ]
    )
    probe(workdir, 0)
    pixels = sum(f.pixels for f in findings["train"])
    figure = _figure(configuration, stored["train"], seen["train"], pixels, found)
    picture = workdir / "preview.png"
    with complete(picture) as unfinished:
        figure.savefig(unfinished, dpi=110)
    with complete_text(workdir / "preview.txt") as opened:
        opened.write(text + "\n")
    return Preview(text, found, picture)


def _first_tiles(
    settings: TrainSettings, examples: int, chosen: int, count: int
) -> list[tuple[int, jax.Array]]:
    """The first steps, from 1, that train on one of the examples, and the keys of its tiles."""
    key = training_key(settings)
    tiles: list[tuple[int, jax.Array]] = []
    step = 0
    while len(tiles) < count:
        step += 1
        places = batch_indices(step - 1, examples, settings.batch_size, settings.seed) == chosen
        if places.any():
            keys = tile_keys(draw(key, step, examples, settings).key, settings.batch_size)
            tiles += [(step, keys[i]) for i in np.flatnonzero(places)]
    return tiles[:count]


def _view(config):
    """How much the network sees at a time, as a sentence."""
    side, reach = config.train.tile_side, context(config.model.depth)
    scale = config.data.scale
    at_scale = "" if scale == 1 else f", after images and masks are scaled by {scale}"
    return (
        f"The network takes tiles of {side} x {side} pixels and learns the middle "
        f"{side - 2 * reach} x {side - 2 * reach} of each{at_scale}. It classifies a pixel by what "
        f"lies within {reach} pixels of it; smaller images are mirrored at their edges."
    )


def _figure(config, stored, seen, pixels, found):
    background = [(e.labels == 0).sum() / max((e.labels != IGNORED).sum(), 1) for e in seen]
    order = np.argsort(background, kind="stable")
    chosen = list(dict.fromkeys([order[0], order[len(order) // 2], order[-1]]))
    seen_shown = [seen[i] for i in chosen]
    class_weight = balanced(pixels_of(seen, config.model.classes)[:, :-1].sum(0))
    weights = weight_maps(seen_shown, class_weight, config.weight_map)
    tiles = _tiles(config, len(seen), chosen, annotated_images(seen_shown, weights))

    message = "\n".join(textwrap.fill(f"Warning: {printable(w)}", 190) for w in found)
    height = 3.9 * len(chosen) + 0.8 + 0.25 * message.count("\n")
    figure = Figure(figsize=(22, height), layout="constrained")
    figure.suptitle(message, x=0.01, ha="left", color="#b00000", fontsize=13, parse_math=False)
    rows = figure.subplots(len(chosen), 4 + _TILES, squeeze=False)
    for axes, i, example, weight, own_tiles in zip(
        rows, chosen, seen_shown, weights, tiles, strict=True
    ):
        shares = f"{100 * background[i]:.1f} % {config.class_names[0]}"
        axes[0].set_ylabel(f"{printable(example.name[:30])}\n{shares}", parse_math=False)
        _draw_stored(axes[0], axes[1], stored[i])
        _draw(axes[2], _mask_picture(example, config))
        drawn = _draw(axes[3], weight, cmap="magma", vmin=0)
        figure.colorbar(drawn, ax=axes[3], fraction=0.046)
        for axis, (step, tile, coordinates) in zip(axes[4:], own_tiles, strict=True):
            _draw_tile(axis, tile, coordinates, config)
            axis.set_title(f"as trained on in step {step}")
        for axis in axes:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(
        rows[0],
        ("image and outlines of its mask", "detail", "mask, as trained on", "weight of each pixel"),
        strict=False,
    ):
        axis.set_title(title)
    legend = figure.legend(
        handles=_legend(config, pixels), loc="outside lower center", ncols=8, fontsize=12
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)  # a $ in a name is no formula
    return figure


def _tiles(
    config: Configuration, examples: int, chosen: Sequence[int], images: AnnotatedImages
) -> list[list[tuple[int, Tile, np.ndarray]]]:
    """The tiles of each chosen example: (step, augmented example, coordinates) for each."""
    geometry = {"tile_side": config.train.tile_side, "context": context(config.model.depth)}
    settings = config.augmentation

    @jax.jit
    def tile(key, crop):
        augmented = augment(key, crop, settings, **geometry)
        geometry_key = jax.random.split(key)[0]  # as `augment` derives it
        return augmented, tile_coordinates(
            geometry_key, crop.size, crop.places, settings, **geometry
        )

    tiles = []
    for n, i in enumerate(chosen):
        own = []
        for step, key in _first_tiles(config.train, examples, i, _TILES):
            batch = take(images, np.array([n]), key[None], settings, **geometry)
            crop = jax.tree.map(lambda array: array[0], batch)
            own.append((step, *jax.device_get(tile(key, crop))))
        tiles.append(own)
    return tiles


def _draw_stored(whole: Axes, detail: Axes, example: Example) -> None:
    """Draws the image with the outlines of its cells, and enlarged the part with most of them."""
    image = _displayed(example.image)
    cells = np.where(example.labels == IGNORED, IGNORED, example.instances)
    _draw(whole, image)
    _outline(whole, cells)
    diameters = cell_diameters(example.instances)
    side = int(np.clip(1.5 * np.median(diameters) if len(diameters) else 0, *_DETAIL))
    busy = ndimage.uniform_filter(
        (ndimage.morphological_gradient(cells, 3) > 0).astype(np.float32), side, mode="constant"
    )
    corner = [
        int(np.clip(centre - side // 2, 0, max(length - side, 0)))
        for centre, length in zip(
            np.unravel_index(busy.argmax(), busy.shape), busy.shape, strict=True
        )
    ]
    part = tuple(slice(first, first + side) for first in corner)
    _draw(detail, image[part])
    _outline(detail, cells[part])
    whole.add_patch(_frame(*corner, *cells[part].shape))


def _draw_tile(axes, tile, coordinates, config):
    side, reach = config.train.tile_side, context(config.model.depth)
    _draw(axes, _displayed(tile.image))
    spacing = max(8, side // 10)
    for plane in coordinates:
        lines = np.arange(spacing, plane.max(), spacing)
        axes.contour(plane, lines, colors=_GRID_COLOUR, linewidths=0.9)
    _outline(axes, tile.labels, offset=reach)
    axes.add_patch(_frame(reach, reach, *tile.labels.shape))


def _draw(axes, picture, **settings):
    """Draws [H, W] or [H, W, 3] so that the axes count its pixels."""
    height, width = picture.shape[:2]
    step = -(-max(height, width) // _SHOWN_PIXELS)
    settings = {"cmap": "gray", "extent": (-0.5, width - 0.5, height - 0.5, -0.5)} | settings
    return axes.imshow(picture[::step, ::step], **settings)


def _outline(axes, regions, offset=0):
    """Draws the sides of pixels at which the numbers in `regions`, int [H, W], differ."""
    step = -(-max(regions.shape) // _SHOWN_PIXELS)
    regions = regions[::step, ::step]
    y, x = np.nonzero(regions[1:] != regions[:-1])
    flat = np.stack([np.stack([x - 0.5, y + 0.5], -1), np.stack([x + 0.5, y + 0.5], -1)], 1)
    y, x = np.nonzero(regions[:, 1:] != regions[:, :-1])
    upright = np.stack([np.stack([x + 0.5, y - 0.5], -1), np.stack([x + 0.5, y + 0.5], -1)], 1)
    sides = np.concatenate([flat, upright]) * step + offset
    axes.add_collection(LineCollection(sides, colors=TRUTH_COLOUR, linewidths=0.8), autolim=False)


def _frame(top, left, height, width):
    return Rectangle(
        (left - 0.5, top - 0.5), width, height, fill=False, color="white", linestyle="--"
    )


def _displayed(image):
    """uint8 [H, W], or [H, W, 3] for three channels, which are taken as red, green and blue."""
    if image.ndim == 2 or image.shape[-1] != 3:
        return grey_values(image)
    # As one plane, so that all channels are stretched alike.
    return grey_values(image.reshape(len(image), -1)).reshape(image.shape)


def _colours(config: Configuration) -> np.ndarray:
    return class_colours(config.model.classes, config.class_colours)


def _mask_picture(example, config):
    """Cells, each in its own colour; for several classes, or strokes, the colours of classes."""
    picture = class_picture(example.labels, _colours(config))
    cells = example.instances > 0
    if config.model.classes == 2:
        picture[cells] = numbered_picture(example.instances)[cells]
    return picture


def _legend(config, pixels):
    """Which colour in the masks is which class, and its share of the training pixels."""
    colours = [tuple(c / 255) for c in _colours(config)]
    shares = pixels / max(pixels[:-1].sum(), 1)
    names = [f"{n}: {100 * s:.1f} %" for n, s in zip(config.class_names, shares[:-1], strict=True)]
    if config.model.classes == 2:
        names[1] += ", each cell in its own colour"
        colours[1] = tuple(numbered_picture(np.array([[1]]))[0, 0] / 255)
    entries = [
        Patch(facecolor=c, edgecolor="gray", label=n) for c, n in zip(colours, names, strict=True)
    ]
    if pixels[-1]:
        share = pixels[-1] / pixels.sum()
        entries.append(
            Patch(facecolor=IGNORED_COLOUR, label=f"ignored: {100 * share:.1f} % of all pixels")
        )
    return [
        *entries,
        Line2D([], [], color=TRUTH_COLOUR, label="outline of a cell in the mask"),
        Line2D([], [], color=_GRID_COLOUR, label="grid of the image, deformed"),
        Line2D([], [], color="gray", linestyle="--", label="enlarged part; output of the network"),
    ]
