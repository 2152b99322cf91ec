"""What a configuration, see `configs/em.py`, may hold."""

import math

from ml_collections import ConfigDict

from unet_jax.errors import InputError
from unet_jax.network import valid_input_sides

_PARTS = ("model", "class_names", "data", "weight_map", "augmentation", "optimiser", "train")


def check_config(config: ConfigDict) -> None:
    """Raises InputError, naming the key, for a value that no run can use."""
    for part in _PARTS:
        if part not in config:
            raise InputError(f"config.{part} is missing; configs/em.py shows what belongs there.")
    model, optimiser, settings = config.model, config.optimiser, config.train
    augmentation = config.augmentation
    sides = valid_input_sides(settings.tile_side, max(model.depth, 1))
    demands = [
        ("model.width", model.width >= 1, "at least 1"),
        ("model.depth", model.depth >= 1, "at least 1"),
        ("model.classes", model.classes >= 2, "at least 2"),
        ("model.dropout_rate", 0 <= model.dropout_rate < 1, "in [0, 1)"),
        ("model.dtype", model.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
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
    ]
    for key, holds, wanted in demands:
        if not holds:
            value = config
            for part in key.split("."):
                value = value[part]
            raise InputError(f"config.{key} must be {wanted}, not {value}.")
    for part in ("weight_map", "augmentation", "optimiser"):
        for key, value in config[part].items():
            if not math.isfinite(value):
                raise InputError(f"config.{part}.{key} must be finite, not {value}.")
