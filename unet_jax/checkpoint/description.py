"""What is saved with a step beside its arrays, which may come from a stranger."""

import json
from pathlib import Path
from typing import Any

from unet_jax.checkpoint.manifest import UNREADABLE, damaged, read_verified_description
from unet_jax.checkpoint.steps import saved_steps, step_folder
from unet_jax.configuration import check_config, check_model, with_added_keys
from unet_jax.errors import InputError, one_line

_MAX_DEPTH = 10
# What `start_from.first_state` records.
_SOURCE = dict(checkpoint=str, step=int, manifest_sha256=str, new_layers=list, seen=list)


def describe(workdir: Path, step: int) -> dict[str, Any]:
    """The description that was saved with a step.

    Raises:
      InputError: it is not what was saved, or not of this program.
    """
    folder = step_folder(workdir, step)
    try:
        description = json.loads(read_verified_description(folder))
    except UNREADABLE as error:
        raise damaged(workdir, step, error) from error
    try:
        if "config" in description:
            description["config"] = with_added_keys(description["config"])
        _check_description(description)
    except Exception as error:  # made-up values raise many kinds
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{folder}: is no checkpoint of this program ({reason}).") from error
    return description


def best_step(workdir: Path) -> int:
    """The step with the lowest validation loss; the latest, if none has been validated.

    Where a run went on with other data or weights, only the losses since then are compared.
    """
    descriptions = {step: describe(workdir, step) for step in saved_steps(workdir)}
    latest = max(descriptions)
    losses = {
        step: description["validation"]["loss"]
        for step, description in descriptions.items()
        if description["validation"] and _same_measure(description, descriptions[latest])
    }
    return min(losses, key=losses.__getitem__) if losses else latest


def _same_measure(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the validation losses of two steps are of the same images and weights."""
    weights = [description.get("config", {}).get("weight_map") for description in (a, b)]
    return weights[0] == weights[1] and all(a.get(k) == b.get(k) for k in ("data", "splits"))


def _check_description(description: dict[str, Any]) -> None:
    """Raises for values that `load` cannot use, and for what it needs and does not find."""
    check_model(description["model"])
    low, high = description["percentiles"]
    validation = description["validation"]
    for name, holds in (
        ("channels", type(description["channels"]) is int and 1 <= description["channels"] <= 1000),
        ("scale", 0 < description["scale"] <= 10),
        ("percentiles", 0 <= low <= high <= 100),
        ("validation", validation is None or isinstance(validation["loss"], float)),
    ):
        if not holds:
            raise InputError(f"{name} is {description[name]!r}")
    if _depth(description) > _MAX_DEPTH:
        raise InputError(f"it is nested more than {_MAX_DEPTH} deep")
    if "config" in description:
        _check_run(description)


def _check_run(description: dict[str, Any]) -> None:
    """Raises for values of what training adds that an evaluation cannot use."""
    config, names = description["config"], description["class_names"]
    check_config(config)
    data, splits = config["data"], description["splits"]
    source = description.get("started_from")
    for name, holds in (
        ("step", type(description["step"]) is int),
        ("folds", type(description.get("folds", 1)) is int),
        ("config", config["model"] == description["model"]),
        ("config", type(data["source"]) is str and type(data.get("ignore_value", -1)) is int),
        ("class_names", names == config["class_names"] and all(type(n) is str for n in names)),
        ("splits", set(splits) == {"train", "validation", "test"}),
        ("splits", all(type(split) is list for split in splits.values())),
        ("data", type(description.get("data", {})) is dict),
        ("images", type(description.get("images", {})) is dict),
        ("started_from", source is None or {k: type(v) for k, v in source.items()} == _SOURCE),
        ("versions", type(description["versions"]["unet-jax"]) is str),
    ):
        if not holds:
            raise InputError(f"{name} is {description[name]!r}")


def _depth(value) -> int:
    """How often JSON objects and arrays are nested."""
    if isinstance(value, dict | list):
        return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0
