"""What a configuration, see `configs/em.py`, may hold."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.colors import is_color_like

from unet_jax.errors import InputError, Problems
from unet_jax.network import valid_input_sides

_WHOLE_NUMBERS = {
    "optimiser": ("warmup_steps", "momentum_warmup_steps"),
    "train": ("seed", "steps", "tile_side", "batch_size", "validate_every"),
}
_NUMBERS = {
    "weight_map": ("w0", "sigma"),
    "augmentation": (
        "elastic_pixels",
        "rotation_degrees",
        "shift",
        "mirror_probability",
        "contrast_std",
        "brightness_std",
    ),
    "optimiser": ("momentum", "initial_momentum", "peak_learning_rate"),
}
_KEYS = {
    part: _WHOLE_NUMBERS.get(part, ()) + _NUMBERS.get(part, ())
    for part in ("weight_map", "augmentation", "optimiser", "train")
} | {"model": ("width", "depth", "classes", "dropout_rate", "dtype")}
_KEYS["train"] += ("start_from", "freeze_contracting_path")
# Keys that version 0.1.0 had not, with the values that mean what it did.
_ADDED = {"train": {"start_from": "", "freeze_contracting_path": False}}
_ADDED_FOR_FOLDER = {"data": {"minus_one": ""}}

# A key with its value, whether that is all right, and what it must be.
_Demand = tuple[str, Any, bool, str]


def with_added_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of any version as one of this version."""
    is_folder = config["data"]["source"] == "folder"
    parts = _ADDED | _ADDED_FOR_FOLDER if is_folder else _ADDED
    return dict(config) | {part: added | config[part] for part, added in parts.items()}


def check_config(config: Mapping[str, Any]) -> None:
    """Raises InputError for a configuration that no run can use, with a line for each bad key.

    What belongs into `data` depends on its source, see `data.splits`.
    """
    missing = [part for part in (*_KEYS, "class_names", "data") if part not in config]
    if missing:
        raise InputError(*(f"config.{part} is missing; see configs/em.py." for part in missing))
    problems = Problems()
    for part, keys in _KEYS.items():
        with problems.collected():
            _check_keys(part, config[part], keys)
    problems.raise_all()
    with problems.collected():
        check_model(config["model"])
    with problems.collected():
        _check(_numbers(config))
    problems.raise_all()

    model, data, weight_map, augmentation, optimiser, settings = (
        config[part]
        for part in ("model", "data", "weight_map", "augmentation", "optimiser", "train")
    )
    names, scale = config["class_names"], data.get("scale", 1.0)
    classes, colours = model["classes"], config.get("class_colours", ())
    are_names = _are_texts(names) and len(set(names)) == len(names) == classes
    are_colours = _are_texts(colours) and all(map(is_color_like, colours))
    sides = valid_input_sides(settings["tile_side"], model["depth"])
    steps, warmup = settings["steps"], optimiser["warmup_steps"]
    at_least_1 = {f"train.{k}": settings[k] for k in ("steps", "batch_size", "validate_every")}
    at_least_1["optimiser.momentum_warmup_steps"] = optimiser["momentum_warmup_steps"]
    at_least_0 = {f"augmentation.{key}": value for key, value in augmentation.items()}
    at_least_0 |= {"train.seed": settings["seed"], "weight_map.w0": weight_map["w0"]}
    above_0 = {
        "weight_map.sigma": weight_map["sigma"],
        "optimiser.peak_learning_rate": optimiser["peak_learning_rate"],
    }
    fractions = {f"optimiser.{k}": optimiser[k] for k in ("momentum", "initial_momentum")}
    mirror = augmentation["mirror_probability"]
    source, freeze = settings["start_from"], settings["freeze_contracting_path"]
    _check(
        [
            (
                "class_names",
                names,
                are_names,
                f"{classes} different names in quotes, as many as config.model.classes",
            ),
            (
                "class_colours",
                colours,
                are_colours and len(colours) in (0, classes),
                f"{classes} colours such as '#ff8000', as many as config.model.classes, or ()",
            ),
            ("data.scale", scale, _is_number(scale) and 0 < scale <= 10, "above 0, at most 10"),
            (
                "train.tile_side",
                settings["tile_side"],
                settings["tile_side"] in sides,
                f"valid, like {sides}, at this depth",
            ),
            ("optimiser.warmup_steps", warmup, 0 <= warmup < steps, "below train.steps"),
            ("augmentation.mirror_probability", mirror, mirror <= 1, "at most 1"),
            ("train.start_from", source, type(source) is str, "the --workdir of a run, or empty"),
            ("train.freeze_contracting_path", freeze, type(freeze) is bool, "True or False"),
            (
                "train.freeze_contracting_path",
                freeze,
                source or not freeze,
                "False where config.train.start_from is empty",
            ),
            *((key, value, value >= 1, "at least 1") for key, value in at_least_1.items()),
            *((key, value, value >= 0, "at least 0") for key, value in at_least_0.items()),
            *((key, value, value > 0, "above 0") for key, value in above_0.items()),
            *((key, value, 0 <= value < 1, "in [0, 1)") for key, value in fractions.items()),
        ]
    )


def check_model(model: Mapping[str, Any]) -> None:
    """Raises InputError for what are no fields of `network.UNet`, with a line for each."""
    _check_keys("model", model, _KEYS["model"])
    rate, dtype = model["dropout_rate"], model["dtype"]
    demands = [
        (
            f"model.{key}",
            model[key],
            type(model[key]) is int and low <= model[key] <= high,
            f"a whole number from {low} to {high}",
        )
        for key, low, high in (("width", 1, 4096), ("depth", 1, 8), ("classes", 2, 4096))
    ]
    demands += [
        ("model.dropout_rate", rate, _is_number(rate) and 0 <= rate < 1, "in [0, 1)"),
        ("model.dtype", dtype, dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
    ]
    _check(demands)


def _numbers(config) -> Iterable[_Demand]:
    for part, keys in _WHOLE_NUMBERS.items():
        for key in keys:
            value = config[part][key]
            yield f"{part}.{key}", value, type(value) is int, "a whole number"
    for part, keys in _NUMBERS.items():
        for key in keys:
            value = config[part][key]
            yield f"{part}.{key}", value, _is_number(value), "finite and a number"


def _are_texts(value) -> bool:
    return isinstance(value, list | tuple) and all(type(text) is str for text in value)


def _is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_keys(part: str, present: Mapping[str, Any], expected: tuple[str, ...]) -> None:
    known = ", ".join(expected)
    problems = [f"config.{part}.{key} is missing." for key in expected if key not in present]
    problems += [
        f"config.{part}.{key} is not known, only {known}." for key in present if key not in expected
    ]
    if problems:
        raise InputError(*problems)


def _check(demands: Iterable[_Demand]) -> None:
    problems = [
        f"config.{key} must be {wanted}, not {value}."
        for key, value, holds, wanted in demands
        if not holds
    ]
    if problems:
        raise InputError(*problems)
