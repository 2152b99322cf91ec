"""Which examples a run trains on, validates on and is tested on."""

from collections.abc import Mapping
from typing import Any

from unet_jax.data.example import Example
from unet_jax.data.folder import read_folder, split_by_stem
from unet_jax.data.isbi2012 import read_isbi2012
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError


def read_splits(data: Mapping[str, Any], classes: int) -> dict[str, list[Example]]:
    """The examples of a configuration's `data` part, as `train`, `validation` and `test`.

    `source` is "isbi2012" or "synthetic", where each split is a range (first, last + 1), or
    "folder", which is divided at random by files.

    Raises:
      InputError: files that cannot be used, or a split without examples.
    """
    if data["source"] == "folder":
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
    ranges = {split: tuple(data[split]) for split in ("train", "validation", "test")}
    if data["source"] == "isbi2012":
        examples = read_isbi2012()
    elif data["source"] == "synthetic":
        count = max(stop for _, stop in ranges.values())
        examples = synthetic_examples(
            data["seed"], count, height=data["height"], width=data["width"]
        )
    else:
        raise InputError(f"data.source is isbi2012, synthetic or folder, not {data['source']!r}.")
    for split, (first, stop) in ranges.items():
        if not 0 <= first < stop <= len(examples):
            raise InputError(
                f"data.{split} = ({first}, {stop}) is no range of the {len(examples)} examples."
            )
    return {split: examples[first:stop] for split, (first, stop) in ranges.items()}
