"""What `checkpoint.json` holds: a typed record of the run, and its conversion to and from JSON."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unet_jax.checked_settings import as_dict, read
from unet_jax.configuration import Configuration, read_configuration
from unet_jax.errors import InputError, one_line
from unet_jax.network import UNet
from unet_jax.normalisation import PERCENTILES

_MAX_DEPTH = 10  # of nested JSON
# Of all images; lists and dicts of texts, as JSON has them.
_LARGE = ("splits", "data", "images")


@dataclass(frozen=True)
class StartedFrom:
    """The run that a network started from, see `run.start_from`.

    Attributes:
      checkpoint: its folder, as given.
      step: the step taken over.
      manifest_sha256: of that step.
      new_layers: those that began at random.
      seen: the images held out here that the network had been trained or validated on.
    """

    checkpoint: str
    step: int
    manifest_sha256: str
    new_layers: list[str]
    seen: list[str]


@dataclass(frozen=True)
class Training:
    """How a network was trained.

    Attributes:
      config: all settings.
      class_weights: w_c of Eq. 2, by class.
      splits: the names of the images in `train`, `validation` and `test`.
      data: the digests of images with their masks, by name.
      images: the digests of the images alone, by name; empty in older checkpoints.
      started_from: the run that it started from, if any.
      fold: the part that was left out.
      folds: the number of parts; 1 without cross-validation.
      command: what the user typed, if it was a command.
      versions: of the packages, and the device.
    """

    config: Configuration
    class_weights: list[float]
    splits: dict[str, list[str]]
    data: dict[str, str]
    images: dict[str, str]
    started_from: StartedFrom | None
    fold: int
    folds: int
    command: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Record:
    """What a checkpoint holds besides its arrays.

    Attributes:
      network: the architecture.
      channels: of the images.
      scale: of the images as the network sees them; 0.5 = half the resolution.
      percentiles: of the grey value normalisation.
      step: how many steps the network was trained for.
      validation: `loss` and errors of this step, None if it was not validated.
      training: how it was trained, None if that is not known.
    """

    network: UNet
    channels: int
    scale: float = 1.0
    percentiles: tuple[float, float] = PERCENTILES
    step: int = 0
    validation: dict[str, float] | None = None
    training: Training | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values, in the form that `read_record` takes."""
        values: dict[str, Any] = {
            "model": as_dict(self.network),
            "channels": self.channels,
            "scale": self.scale,
            "percentiles": self.percentiles,
        }
        if self.training:
            source = self.training.started_from
            values |= vars(self.training) | {
                "class_names": self.training.config.class_names,
                "config": self.training.config.to_json(),
                "started_from": source and dataclasses.asdict(source),
            }
        values |= {"step": self.step, "validation": self.validation}
        small = {name: value for name, value in values.items() if name not in _LARGE}
        small = json.loads(json.dumps(small))  # tuples become lists
        return {name: small.get(name, value) for name, value in values.items()}


def read_record(values: Any) -> Record:
    """The record of a checkpoint written by any version.

    Args:
      values: JSON that may come from a stranger.

    Raises:
      InputError: a value is missing, or is not one that a checkpoint of this program holds.
    """
    try:
        return _read(values)
    except Exception as error:  # made-up values raise many kinds
        raise InputError(f"{type(error).__name__}: {one_line(error)}") from error


def _read(values: Mapping[str, Any]) -> Record:
    if _depth(values) > _MAX_DEPTH:
        raise InputError(f"it is nested more than {_MAX_DEPTH} deep")
    # Names of files may be bytes that are no UTF-8: Python has half a surrogate pair for each.
    json.dumps(values, ensure_ascii=False).encode(errors="surrogateescape")
    network = read(UNet, values["model"], "model")
    low, high = values["percentiles"]
    validation, scale = values.get("validation"), values["scale"]
    _demand(
        values,
        ("channels", type(values["channels"]) is int and 1 <= values["channels"] <= 1000),
        ("scale", type(scale) in (int, float) and 0 < scale <= 10),
        ("percentiles", bool not in (type(low), type(high)) and 0 <= low <= high <= 100),
        ("step", type(values.get("step", 0)) is int),
        ("validation", validation is None or "loss" in validation),
        ("validation", validation is None or _are_all(float, validation.values())),
    )
    return Record(
        network=network,
        channels=values["channels"],
        scale=scale,
        percentiles=(low, high),
        step=values.get("step", 0),
        validation=validation,
        training=_read_training(values, network) if "config" in values else None,
    )


def _read_training(values: Mapping[str, Any], network: UNet) -> Training:
    config = read_configuration(values["config"])
    splits, source = values["splits"], values.get("started_from")
    weights, versions = values.get("class_weights", []), values["versions"]
    data, images = values.get("data", {}), values.get("images", {})
    # These go into files whose formats demand UTF-8.
    json.dumps([config.class_names, versions], ensure_ascii=False).encode()
    _demand(
        values,
        ("config", config.model == network),
        ("class_names", tuple(values["class_names"]) == config.class_names),
        ("splits", set(splits) == {"train", "validation", "test"}),
        ("splits", all(type(names) is list and _are_all(str, names) for names in splits.values())),
        ("data", _are_all(str, data.values())),
        ("images", _are_all(str, images.values())),
        ("started_from", source is None or _has_types(source, StartedFrom)),
        ("started_from", source is None or _are_all(str, source["new_layers"] + source["seen"])),
        ("class_weights", type(weights) is list and _are_all(float, weights)),
        ("fold", type(values.get("fold", 0)) is int),
        ("folds", type(values.get("folds", 1)) is int),
        ("command", type(values.get("command", "")) in (str, type(None))),
        ("versions", "unet-jax" in versions and _are_all(str, versions.values())),
    )
    return Training(
        config=config,
        class_weights=weights,
        splits=splits,
        data=data,
        images=images,
        started_from=source and StartedFrom(**source),
        fold=values.get("fold", 0),
        folds=values.get("folds", 1),
        command=values.get("command"),
        versions=versions,
    )


def _demand(values: Mapping[str, Any], *demands: tuple[str, bool]) -> None:
    for name, holds in demands:
        if not holds:
            raise InputError(f"{name} is {values.get(name)!r}")


def _are_all(kind: type, values: Iterable[Any]) -> bool:
    return all(type(value) is kind for value in values)


def _has_types(values: Mapping[str, Any], kind: type) -> bool:
    types = {f.name: getattr(f.type, "__origin__", f.type) for f in dataclasses.fields(kind)}
    return {name: type(value) for name, value in values.items()} == types


def _depth(value) -> int:
    """How deeply JSON objects and arrays are nested."""
    if isinstance(value, Mapping | list):
        inner = value.values() if isinstance(value, Mapping) else value
        return 1 + max(map(_depth, inner), default=0)
    return 0
