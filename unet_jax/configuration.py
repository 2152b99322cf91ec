"""What a configuration, see `configs/em.py`, may hold."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from unet_jax.errors import InputError
from unet_jax.network import valid_input_sides

_PARTS = ("model", "class_names", "data", "weight_map", "augmentation", "optimiser", "train")
_MODEL_FIELDS = {"width", "depth", "classes", "dropout_rate", "dtype"}

# Key, whether its value is all right, and what it must be.
_Demands = Iterable[tuple[str, bool, str]]


def check_config(config: ConfigDict) -> None:
    """Raises InputError, naming every key whose value no run can use."""
    missing = [part for part in _PARTS if part not in config]
    if missing:
        raise InputError(
            *(
                f"config.{part} is missing; configs/em.py shows what belongs there."
                for part in missing
            )
        )
    check_model(config.model)
    model, optimiser, settings = config.model, config.optimiser, config.train
    augmentation = config.augmentation
    sides = valid_input_sides(settings.tile_side, model.depth)
    demands = [
        ("class_names", len(config.class_names) == model.classes, "a name for each class"),
        ("data.scale", 0 < config.data.get("scale", 1.0) < math.inf, "above 0 and finite"),
        ("weight_map.w0", config.weight_map.w0 >= 0, "at least 0"),
        ("weight_map.sigma", config.weight_map.sigma > 0, "above 0"),
        ("train.tile_side", settings.tile_side in sides, f"valid, like {sides}, at this depth"),
        ("train.batch_size", settings.batch_size >= 1, "at least 1"),
        ("train.steps", settings.steps >= 1, "at least 1"),
        ("train.seed", settings.seed >= 0, "at least 0"),
        ("train.validate_every", settings.validate_every >= 1, "at least 1"),
        (
            "optimiser.warmup_steps",
            0 <= optimiser.warmup_steps < settings.steps,
            "below train.steps",
        ),
        ("optimiser.peak_learning_rate", optimiser.peak_learning_rate > 0, "above 0"),
        ("optimiser.momentum", 0 <= optimiser.momentum < 1, "in [0, 1)"),
        ("optimiser.initial_momentum", 0 <= optimiser.initial_momentum < 1, "in [0, 1)"),
        ("optimiser.momentum_warmup_steps", optimiser.momentum_warmup_steps >= 1, "at least 1"),
        ("augmentation.mirror_probability", augmentation.mirror_probability <= 1, "at most 1"),
        *((f"augmentation.{k}", v >= 0, "at least 0") for k, v in augmentation.items()),
        *(
            (f"{part}.{key}", math.isfinite(value), "finite")
            for part in ("weight_map", "augmentation", "optimiser")
            for key, value in config[part].items()
        ),
    ]
    _check(demands, config)


def check_model(model: Mapping[str, Any]) -> None:
    """Raises InputError for values that are no fields of `network.UNet`."""
    if set(model) != _MODEL_FIELDS:
        raise InputError(f"config.model holds {', '.join(model)}, not {', '.join(_MODEL_FIELDS)}.")
    width, depth, classes = (model[key] for key in ("width", "depth", "classes"))
    whole = [type(value) is int for value in (width, depth, classes)]
    _check(
        [
            ("model.width", whole[0] and 1 <= width <= 2**12, "a whole number from 1 to 4096"),
            ("model.depth", whole[1] and 1 <= depth <= 8, "a whole number from 1 to 8"),
            ("model.classes", whole[2] and 2 <= classes <= 2**12, "a whole number from 2 to 4096"),
            ("model.dropout_rate", 0 <= model["dropout_rate"] < 1, "in [0, 1)"),
            ("model.dtype", model["dtype"] in ("float32", "bfloat16"), "float32 or bfloat16"),
        ],
        {"model": model},
    )


def _check(demands: _Demands, config: Mapping[str, Any]) -> None:
    problems = []
    for key, holds, wanted in demands:
        if not holds:
            value = config
            for part in key.split("."):
                value = value[part]
            problems.append(f"config.{key} must be {wanted}, not {value}.")
    if problems:
        raise InputError(*problems)
