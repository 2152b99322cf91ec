"""The images that an evaluation scores, each with the network that predicts it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unet_jax.checkpoint import ensemble
from unet_jax.data.folder import read_folder
from unet_jax.data.folder_split import uncut_name
from unet_jax.data.isbi2012 import read_isbi2012_test
from unet_jax.data.splits import read_splits
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import Example, image_sha256, sha256
from unet_jax.hardware import host_memory_bytes
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_tiled
from unet_jax.run_record import Training
from unet_jax.sources import CellTracking, Folder, Isbi2012
from unet_jax.unread import Examples, names_of, sizes_of

logger = logging.getLogger("unet_jax")

#: Images of a run that can be evaluated: what it left out, what chose its best step, and the test
#: stack of the ISBI 2012 challenge.
SPLITS = ("held_out", "validation", "test")


class Part(NamedTuple):
    """Images with the network or ensemble that predicts them."""

    model: Model
    examples: list[Example]


class Selection(NamedTuple):
    """The images that are scored.

    Attributes:
      words: a description of the images.
      folder: the usual name of the results folder, inside the run's folder.
      parts: several for the folds of a cross-validation.
      single_cells: whether their masks say which cell is which.
    """

    words: str
    folder: str
    parts: list[Part]
    single_cells: bool


class Seen(NamedTuple):
    """A scored picture that the network has already seen.

    Attributes:
      name: its name here.
      other: its name among the images of the training run.
      split: "train" or "validation".
    """

    name: str
    other: str
    split: str


def select(
    members: list[Model],
    split: str,
    *,
    images: str | Path | None,
    labels: str | Path | None,
    mask_rule: str | None,
) -> Selection:
    """The images to score; arguments as for `evaluate`.

    Raises:
      ValueError: there is no such split.
      InputError: they cannot be used.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
    if images or labels or mask_rule:
        if images is None or labels is None or split != "held_out":
            raise InputError(
                "Give --images and --labels together; --mask_rule only with them, --split only "
                "without them."
            )
        masks = _masks(members[0], mask_rule)
        own = _own(members[0], Path(images), Path(labels), masks)
        parts, single_cells = [Part(ensemble(members), own)], masks.mask_rule == "instances"
        return Selection(f"images in {images}", "evaluation_images", parts, single_cells)
    data = _training(members[0]).config.data
    of_folder = isinstance(data, Folder) and data.mask_rule == "instances"
    single_cells = of_folder or isinstance(data, CellTracking)
    if split == "validation":
        words = "images of the run's validation split, used to choose its step"
        return Selection(words, "evaluation_validation", left_out(members), single_cells)
    if split == "held_out":
        parts = [Part(ensemble(members), _of_run(members[0], "test"))]
        return Selection("images that the run left out", "evaluation", parts, single_cells)
    if not isinstance(data, Isbi2012):
        raise InputError(
            "--split=test is the ISBI 2012 challenge's test stack, only for runs on that data; "
            "without --split, the images that this run left out are scored."
        )
    words = "images of the ISBI 2012 challenge's test stack"
    parts = [Part(ensemble(members), read_isbi2012_test())]
    return Selection(words, "evaluation_test", parts, single_cells)


def left_out(members: list[Model]) -> list[Part]:
    """Each network with its validation split.

    Raises:
      InputError: the images no longer exist.
    """
    return [Part(member, _of_run(member, "validation")) for member in members]


def _training(model: Model) -> Training:
    if model.training is None:
        raise InputError("The checkpoint does not record its training.")
    return model.training


def _masks(model: Model, mask_rule: str | None) -> Folder:
    """How masks are read: as in training, unless they follow another rule."""
    data = _training(model).config.data
    as_in_training = data if isinstance(data, Folder) else Folder()
    if mask_rule in (None, as_in_training.mask_rule):
        return as_in_training
    return Folder(mask_rule=mask_rule)


def _own(model: Model, images: Path, labels: Path, masks: Folder) -> list[Example]:
    examples = read_folder(
        images,
        labels,
        mask_rule=masks.mask_rule,
        classes=model.network.classes,
        ignore_value=masks.ignore_value,
        minus_one=masks.minus_one,
        channels=model.channels,
    )
    _check_memory(sizes_of(examples), f"The images in {images}", model)
    return list(examples)


def _check_memory(sizes: Sequence[tuple[int, ...]], words: str, model: Model) -> None:
    """Raises InputError if images of these sizes are too many to be scored together."""
    # Grey values; labels and cells, also as they are compared; cells found; probabilities.
    bytes_per_pixel = 4 * model.channels + 20 + 4 * model.network.classes
    needed = bytes_per_pixel * sum(height * width for height, width in sizes)
    if needed > host_memory_bytes():
        raise InputError(
            f"{words} would take {needed / 2**30:.1f} GiB to be scored together, more than the "
            "memory; give some of them as --images and --labels."
        )


def _of_run(model: Model, split: str) -> list[Example]:
    """A split as it was when the run began, whatever has been added to its folder since."""
    training = _training(model)
    names = training.splits[split]
    if not names:  # such as of a run that was painted
        raise InputError(f"The run has no {split} images; give --images and --labels.")
    data, classes = training.config.data, model.network.classes
    places = _places(read_splits(data, classes))
    if not {*names} <= places.keys() and isinstance(data, Folder):
        # One or two files may have been cut, which they are no longer if there are more.
        only = {uncut_name(name) for name in training.data}
        places = _places(read_splits(data, classes, only))
    missing = [name for name in names if name not in places]
    if missing:
        raise InputError(f"{missing[0]} of the run's {split} split is no longer in its data.")
    there = [places[name] for name in names]
    sizes = [sizes_of(examples)[number] for examples, number in there]
    _check_memory(sizes, f"The images of the run's {split} split", model)
    found = [examples[number] for examples, number in there]
    for example in found:
        digest = sha256(example)
        if training.data.get(example.name, digest) != digest:
            logger.warning("%s: its image or mask has changed since the training.", example.name)
    return found


def _places(splits: Mapping[str, Examples]) -> dict[str, tuple[Examples, int]]:
    """Where each example is, by its name."""
    return {
        name: (examples, number)
        for examples in splits.values()
        for number, name in enumerate(names_of(examples))
    }


def seen_before(parts: Sequence[Part], split: str) -> list[Seen]:
    """The pictures that a network was trained on or, except for its own split, validated on.

    Warns of them. An older run has no digests of images: there a picture is recognised only if its
    mask is the same.
    """
    seen = [picture for part in parts for picture in _seen(part, split)]
    if seen:
        count = sum(len(part.examples) for part in parts)
        logger.warning(
            "%d of %d images were seen in training or validation: %s is the same picture as %s "
            "(%s); their scores are too good.",
            *(len(seen), count, *seen[0]),
        )
    return seen


def _seen(part: Part, split: str) -> list[Seen]:
    training = _training(part.model)
    if training.images:
        digests, here = training.images, [image_sha256(e.image) for e in part.examples]
    else:
        digests, here = training.data, [sha256(e) for e in part.examples]
    known = {
        digests.get(name): (name, of)
        for of in (("train",) if split == "validation" else ("validation", "train"))
        for name in training.splits[of]
    }
    return [
        Seen(example.name, *known[digest])
        for example, digest in zip(part.examples, here, strict=True)
        if digest in known
    ]


def predict_parts(parts: Sequence[Part], averaging: str) -> list[np.ndarray]:
    """float32 [H, W, classes] for each example of all parts.

    Raises:
      RunFailed: a probability is not finite.
    """
    pairs = [(part.model, example.image) for part in parts for example in part.examples]
    progress = tqdm(pairs, desc="Evaluating", unit="image", delay=3)
    probabilities = [predict_tiled(model, image, averaging=averaging) for model, image in progress]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise RunFailed("The network's output is not finite; use another --step.")
    return probabilities
