"""Which examples a run trains on, validates on and is tested on."""

import logging
from collections.abc import Collection
from typing import cast

import numpy as np

from unet_jax.data.cell_tracking import find_dataset, read_sequence
from unet_jax.data.folder import read_folder
from unet_jax.data.folder_split import split_by_stem
from unet_jax.data.isbi2012 import read_isbi2012
from unet_jax.data.pixels import memory_for_images
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError, one_line
from unet_jax.example import Example, rescaled, separated
from unet_jax.files.names import stem_and_page
from unet_jax.sources import CellTracking, Data, Folder, Isbi2012, Synthetic
from unet_jax.unread import Examples, Facts, Unread, chosen, names_of, pixels_of

logger = logging.getLogger("unet_jax")

_MAX_PICTURES = 10_000  # made up; a configuration may be a stranger's


def read_run(
    data: Data, classes: int, *, fold: int = 0, folds: int = 1
) -> tuple[dict[str, Examples], dict[str, Examples]]:
    """The splits of a run twice: as they are stored, and as the network sees them.

    The latter are at the run's scale, with touching cells separated. For a folder that does not fit
    into memory they are `Unread`, except for the validation split that the network sees.

    Args:
      data: the source and what it takes.
      classes: the number of classes, background included.
      fold: which part is left out of the training, see `split_folds`.
      folds: number of parts; 1 for the splits that `data` gives.

    Raises:
      InputError: as for `read_splits`; a split has no pixels that count; the training split has
        only one class; the validation split does not fit into memory.
    """
    stored = read_splits(data, classes)
    if folds > 1:
        together = _joined(stored["train"], stored["validation"])
        parts = [split_folds(together, each, folds) for each in range(folds)]
        for part in parts:  # of all folds, before hours go into the first ones
            _classes_in(part, data, classes, folds)
        stored |= parts[fold]
    classes_in = _classes_in(stored, data, classes, folds)
    for split in ("validation", "test"):
        if not any(label > 0 for label in classes_in[split]):
            logger.warning(
                "No image of the %s split holds a cell, so its scores say nothing about cells.",
                split,
            )
    seen = {split: _seen(examples, data.scale) for split, examples in stored.items()}
    if isinstance(seen["validation"], Unread):
        smaller = "more --folds" if folds > 1 else "a smaller config.data.validation_fraction"
        seen["validation"] = _in_memory(seen["validation"], classes, smaller)
    # The others teach nothing; a thin stroke may be lost at a small scale.
    teaches = np.flatnonzero(pixels_of(seen["train"], classes)[:, :-1].any(1)).tolist()
    for splits in (stored, seen):
        splits["train"] = chosen(splits["train"], teaches)
    if not seen["train"]:
        raise InputError(
            f"No annotated pixel of the train split is left at config.data.scale = {data.scale}; "
            "expected a larger scale."
        )
    return stored, seen


def _classes_in(
    splits: dict[str, Examples], data: Data, classes: int, folds: int
) -> dict[str, set[int]]:
    """The classes of each split; InputError if there is nothing to learn or to validate on."""
    remedy = {
        "folder": "annotate more images, or try another config.data.split_seed",
        "cell_tracking": "give another config.data.train_sequence",
    }.get(data.source, "give other ranges for config.data.train and config.data.validation")
    if folds > 1:
        remedy = "annotate more images, or give another number of --folds"
    classes_in = {
        split: {*np.flatnonzero(pixels_of(examples, classes)[:, :-1].sum(0)).tolist()}
        for split, examples in splits.items()
    }
    for split in ("train", "validation"):
        if not classes_in[split]:
            raise InputError(
                f"All pixels of the {split} split are ignored, expected some annotated ones; "
                f"{remedy}."
            )
    if len(classes_in["train"]) == 1:
        raise InputError(
            f"All annotated pixels of the train split are of class {classes_in['train'].pop()}, so"
            f" there is nothing to learn; {remedy}."
        )
    return classes_in


def _seen(examples: Examples, scale: float) -> Examples:
    """As the network sees them."""

    def see(example: Example) -> Example:
        return separated(rescaled(example, scale))

    if isinstance(examples, Unread):
        return examples.changed(see, [cast(Facts, facts.seen) for facts in examples.facts])
    return [see(example) for example in examples]


def _joined(examples: Examples, others: Examples) -> Examples:
    if isinstance(examples, Unread) and isinstance(others, Unread):
        return examples + others
    return [*examples, *others]


def _in_memory(validation: Unread, classes: int, smaller: str) -> list[Example]:
    """Reads the validation split, which is predicted as a whole, if there is room for it.

    Args:
      validation: as the network sees it.
      classes: of the network.
      smaller: the setting that makes it smaller, for the message.
    """
    pixels = sum(height * width for height, width in (facts.size for facts in validation.facts))
    # Labels, cells, weights; grey values; probabilities.
    needed = pixels * (12 + 4 * validation.facts[0].channels + 4 * classes)
    if needed > memory_for_images():
        raise InputError(
            f"The validation split of {len(validation)} images would take "
            f"{needed / 2**30:.1f} GiB, expected at most a quarter of the memory, "
            f"{memory_for_images() / 2**30:.1f} GiB; give {smaller}."
        )
    return list(validation)


def read_splits(
    data: Data, classes: int, only: Collection[str] | None = None
) -> dict[str, Examples]:
    """The examples of one source, as `train`, `validation` and `test`.

    For the challenge and for synthetic pictures, each split is a range; a folder is divided at
    random, file by file; for cell tracking, one sequence is for training and another for the test.

    Args:
      data: the source and what it takes.
      classes: the number of classes, background included.
      only: the names of the examples of a folder that are divided; None = all.

    Raises:
      InputError: a file cannot be used, or a split has no examples.
    """
    try:
        match data:
            case Folder():
                return _split_folder(data, classes, only)
            case CellTracking():
                return _split_sequences(data)
            case Isbi2012():
                slices = read_isbi2012()
                return {split: slices[part] for split, part in _ranges(data, len(slices)).items()}
            case Synthetic():
                return _split_pictures(data)
    except OSError as error:  # a name that no file can have, or that the user may not open
        raise InputError(one_line(error)) from error


def split_folds(examples: Examples, fold: int, folds: int) -> dict[str, Examples]:
    """Divides examples into `folds` parts of neighbours: one as `validation`, the rest as `train`.

    The pages of a file stay together, unless there is only one file.

    Raises:
      InputError: there are fewer files than folds.
    """
    names = names_of(examples)
    files = [stem_and_page(name)[0] for name in names]
    if len(set(files)) == 1:
        files = names
    order = {file: i for i, file in enumerate(dict.fromkeys(files))}
    if folds > len(order):
        raise InputError(f"--folds must be at most {len(order)} for these images, not {folds}.")
    parts = np.array([order[file] * folds // len(order) for file in files])
    return {
        "train": chosen(examples, np.flatnonzero(parts != fold).tolist()),
        "validation": chosen(examples, np.flatnonzero(parts == fold).tolist()),
    }


def _split_folder(data: Folder, classes: int, only: Collection[str] | None) -> dict[str, Examples]:
    examples = read_folder(
        data.images,
        data.labels,
        mask_rule=data.mask_rule,
        classes=classes,
        ignore_value=data.ignore_value,
        minus_one=data.minus_one,
        scale=data.scale,
    )
    if only is not None:
        names = names_of(examples)
        examples = chosen(examples, [i for i, name in enumerate(names) if name in only])
    return split_by_stem(examples, data.validation_fraction, data.test_fraction, data.split_seed)


def _split_sequences(data: CellTracking) -> dict[str, Examples]:
    dataset, every = find_dataset(data.dataset), data.validation_every
    problems: dict[str, None] = {}  # each once, though an image is read with either truth

    def read(sequence, truth):
        try:
            return read_sequence(
                dataset, sequence, truth=truth, partly_annotated=data.partly_annotated
            )
        except InputError as error:
            problems.update(dict.fromkeys(error.args))
            return []

    # Validation and test have the gold truth, whatever the network is trained on.
    annotated, test = read(data.train_sequence, "gold"), read(data.test_sequence, "gold")
    train = annotated if data.truth == "gold" else read(data.train_sequence, data.truth)
    if problems:
        raise InputError(*problems)
    if not 2 <= every <= len(annotated):
        raise InputError(
            f"config.data.validation_every must be between 2 and the {len(annotated)} annotated "
            f"frames of sequence {data.train_sequence}, not {every}."
        )
    validation = annotated[every - 1 :: every]
    held_out = {example.name for example in validation}
    return {
        "train": [example for example in train if example.name not in held_out],
        "validation": validation,
        "test": test,
    }


def _split_pictures(data: Synthetic) -> dict[str, Examples]:
    count = max(data.train[1], data.validation[1], data.test[1])
    ranges = _ranges(data, min(count, _MAX_PICTURES))
    pictures = synthetic_examples(data.seed, count, height=data.height, width=data.width)
    return {split: pictures[part] for split, part in ranges.items()}


def _ranges(data: Isbi2012 | Synthetic, count: int) -> dict[str, slice]:
    """The range of each split, for this number of examples."""
    ranges = {"train": data.train, "validation": data.validation, "test": data.test}
    for split, (first, stop) in ranges.items():
        if not 0 <= first < stop <= count:
            raise InputError(
                f"config.data.{split} = ({first}, {stop}) is not a range within the {count} "
                "examples."
            )
    return {split: slice(*both) for split, both in ranges.items()}
