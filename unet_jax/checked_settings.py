"""Settings: frozen dataclasses next to the ideas they belong to, whose values are checked here.

A field states its default and its allowed values in one place:

    sigma: float = setting(5.0, above=0)
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin

import numpy as np

from unet_jax.errors import InputError

Settings = TypeVar("Settings")

_TYPES: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "True or False",
    str: "text",
}
_BOUNDS = {
    "at_least": ("at least", lambda value, bound: value >= bound),
    "above": ("above", lambda value, bound: value > bound),
    "at_most": ("at most", lambda value, bound: value <= bound),
    "below": ("below", lambda value, bound: value < bound),
}


def setting(default: Any, *, wanted: str = "", one_of: tuple[str, ...] = (), **bounds: float):
    """A field of a settings class.

    Args:
      default: its value if none is given.
      wanted: what it must be, in words for the user; by default derived from the rest.
      one_of: the texts that are allowed.
      bounds: for a number: `at_least`, `above`, `at_most`, `below`.
    """
    demand = {"wanted": wanted, "one_of": one_of, "bounds": bounds}
    return dataclasses.field(default=default, metadata={"demand": demand})


def check(settings: Any) -> None:
    """Raises InputError, with a line for each value that makes no sense; for `__post_init__`.

    A NumPy number becomes a Python number, because JSON has no other kind.
    """
    for name, value in as_dict(settings).items():
        if isinstance(value, np.generic):
            object.__setattr__(settings, name, value.item())  # frozen for all others
    _raise(_problems(type(settings), as_dict(settings), ""))


def read(kind: type[Settings], values: Mapping[str, Any], name: str) -> Settings:
    """Settings from a part of a configuration; anything it does not give has its default.

    Args:
      kind: a dataclass whose fields come from `setting`.
      values: by field; a list, as JSON has it, is taken as a tuple.
      name: the name of the part, for messages.

    Raises:
      InputError: with a line for each unknown key and each value that makes no sense.
    """
    fields = _fields(kind)
    known = ", ".join(fields)
    _raise(
        [
            f"{name}.{key} is not known; the known keys are {known}."
            for key in values
            if key not in fields
        ]
    )
    _raise(_problems(kind, values, f"{name}."))
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def as_dict(settings: Any) -> dict[str, Any]:
    """The values by field."""
    return {name: getattr(settings, name) for name in _fields(type(settings))}


def _fields(kind) -> dict[str, dataclasses.Field]:
    # A Flax module has fields of its own.
    return {field.name: field for field in dataclasses.fields(kind) if "demand" in field.metadata}


def _problems(kind, values: Mapping[str, Any], prefix: str) -> list[str]:
    fields = _fields(kind)
    wanted = {key: _wanted(fields[key], value) for key, value in values.items()}
    return [f"{prefix}{key} must be {w}, not {values[key]}." for key, w in wanted.items() if w]


def _wanted(field: dataclasses.Field, value: Any) -> str:
    """What the value of a field must be, in words; nothing if it is."""
    wanted, one_of, bounds = field.metadata["demand"].values()
    if one_of:
        return "" if value in one_of else wanted or " or ".join(one_of)
    broken = [
        f"{words} {bounds[name]}"
        for name, (words, holds) in _BOUNDS.items()
        if name in bounds and _has_type(value, field.type) and not holds(value, bounds[name])
    ]
    if _has_type(value, field.type) and not broken:
        return ""
    if wanted:
        return wanted
    if field.type is int and {"at_least", "at_most"} <= bounds.keys():
        return f"a whole number from {bounds['at_least']} to {bounds['at_most']}"
    if broken and {"at_least", "below"} <= bounds.keys():
        return f"at least {bounds['at_least']} and below {bounds['below']}"
    return ", ".join(broken) or _TYPES[field.type]


def _has_type(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        fits = isinstance(value, list | tuple) and (kinds[1] is ... or len(value) == len(kinds))
        return fits and all(type(item) is kinds[0] for item in value)
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if kind is str:
        return type(value) is str and "\0" not in value  # no file is called so
    return kind is Any or type(value) is kind


def _raise(problems: list[str]) -> None:
    if problems:
        raise InputError(*problems)
