"""Which examples a run trains on, validates on and is tested on."""

from collections.abc import Mapping
from typing import Any

from unet_jax.data.folder import read_folder, split_by_stem
from unet_jax.data.isbi2012 import read_isbi2012
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError
from unet_jax.example import Example

_SPLITS = ("train", "validation", "test")


def read_splits(data: Mapping[str, Any], classes: int) -> dict[str, list[Example]]:
    """The examples of a configuration's `data` part, as `train`, `validation` and `test`.

    `source` is "isbi2012" or "synthetic", where each split is a range (first, last + 1), or
    "folder", which is divided at random by files.

    Raises:
      InputError: files that cannot be used, or a split without examples.
    """
    try:
        if data["source"] == "folder":
            return _split_folder(data, classes)
        if data["source"] == "isbi2012":
            return _split_by_range(read_isbi2012(), data)
        if data["source"] == "synthetic":
            count = max(data[split][1] for split in _SPLITS)
            pictures = synthetic_examples(
                data["seed"], count, height=data["height"], width=data["width"]
            )
            return _split_by_range(pictures, data)
    except KeyError as error:
        key = str(error.args[0]).strip("'")  # a ConfigDict quotes it
        raise InputError(f"config.data.{key} is missing.") from error
    raise InputError(f"data.source is isbi2012, synthetic or folder, not {data['source']!r}.")


def _split_folder(data, classes):
    examples = read_folder(
        data["images"],
        data["labels"],
        mask_rule=data["mask_rule"],
        classes=classes,
        ignore_value=data["ignore_value"],
    )
    return split_by_stem(
        examples, data["validation_fraction"], data["test_fraction"], data["split_seed"]
    )


def _split_by_range(examples, data):
    for split in _SPLITS:
        first, stop = data[split]
        if not 0 <= first < stop <= len(examples):
            raise InputError(
                f"data.{split} = ({first}, {stop}) is no range of the {len(examples)} examples."
            )
    return {split: examples[slice(*data[split])] for split in _SPLITS}
