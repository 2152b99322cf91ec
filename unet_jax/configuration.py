"""All settings of a training run in one place.

The defaults and limits of a part are in the file of its idea, such as `augmentation.py`;
`docs/configuration.md` lists all values.
"""

import json
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unet_jax.augmentation import AugmentationSettings
from unet_jax.checked_settings import as_dict, check, read, setting
from unet_jax.errors import InputError, Problems
from unet_jax.hardware import fastest_dtype
from unet_jax.network import UNet, valid_input_sides
from unet_jax.optimiser import OptimiserSettings
from unet_jax.sources import Data, Isbi2012, read_data
from unet_jax.weight_map import WeightMapSettings


@dataclass(frozen=True)
class TrainSettings:
    """How long a network is trained, and on what.

    Attributes:
      seed: another number draws other weights and tiles.
      steps: the number of steps of the whole run.
      tile_side: pixels, side of the network's input (Fig. 1).
      batch_size: tiles in a step (Sect. 3: large tiles rather than a large batch).
      average_over: share of the steps so far over which the parameters are averaged; the average is
        used for validation, checkpoints and prediction. 0 = only the last parameters.
      validate_every: steps between two validations, each of which saves a checkpoint.
      start_from: fine-tuning: the --workdir of a run, whose best step is the start, or a network
        of the package, see `unet_jax.pretrained`; empty = random (Sect. 3). All layers are taken
        over, except the first one if the number of channels differs, and the last one if the number
        of classes differs. Width and depth must be those of that run.
      freeze_contracting_path: whether only the expanding path is trained.
      deterministic: whether a GPU may use only operations that give the same bits each time, see
        `layers.compiler_options`.
    """

    seed: int = setting(0, at_least=0, at_most=2**32 - 1)
    steps: int = setting(40_000, at_least=1)
    tile_side: int = setting(572)
    batch_size: int = setting(1, at_least=1)
    average_over: float = setting(0.0, at_least=0, at_most=1)
    validate_every: int = setting(500, at_least=1)
    start_from: str = setting("", wanted="the --workdir of a run, or nuclei or membranes, or empty")
    freeze_contracting_path: bool = setting(False)
    deterministic: bool = setting(False)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


_PARTS = {
    "model": UNet,
    "weight_map": WeightMapSettings,
    "augmentation": AugmentationSettings,
    "optimiser": OptimiserSettings,
    "train": TrainSettings,
}


@dataclass(frozen=True)
class Configuration:
    """All settings of a run; by default the paper's experiment on electron microscopy (Sect. 4).

    Attributes:
      model: the network.
      class_names: a name for each class, the background first.
      class_colours: for pictures, one for each class, such as ("black", "#ff8000"); () = the usual.
      data: what it is trained on.
      weight_map: how much a pixel counts.
      augmentation: how tiles are varied.
      optimiser: how far each step goes.
      train: how long, and on what.
    """

    model: UNet = UNet()
    class_names: tuple[str, ...] = ("membrane", "cell")
    class_colours: tuple[str, ...] = ()
    data: Data = Isbi2012()
    weight_map: WeightMapSettings = WeightMapSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self):
        """Raises InputError, with a line for each value that is incompatible with another one."""
        if self.model.dtype == "auto":
            object.__setattr__(self, "model", self.model.clone(dtype=fastest_dtype()))
        check(self.model)  # which does not do it itself, being a Flax module
        names, colours, classes = self.class_names, self.class_colours, self.model.classes
        sides = valid_input_sides(self.train.tile_side, self.model.depth)
        steps, warmup = self.train.steps, self.optimiser.warmup_steps
        demands = (
            (
                "class_names",
                names,
                _are_texts(names) and len(set(names)) == len(names) == classes,
                f"{classes} different names in quotes, as many as config.model.classes",
            ),
            (
                "class_colours",
                colours,
                _are_colours(colours) and len(colours) in (0, classes),
                f"{classes} colours such as '#ff8000', as many as config.model.classes, or ()",
            ),
            (
                "train.tile_side",
                self.train.tile_side,
                self.train.tile_side in sides,
                f"valid, like {sides}, at this depth",
            ),
            ("optimiser.warmup_steps", warmup, warmup < steps, "below train.steps"),
            (
                "train.freeze_contracting_path",
                self.train.freeze_contracting_path,
                self.train.start_from or not self.train.freeze_contracting_path,
                "False where config.train.start_from is empty",
            ),
        )
        problems = [
            f"config.{key} must be {wanted}, not {value}."
            for key, value, holds, wanted in demands
            if not holds
        ]
        if problems:
            raise InputError(*problems)

    def to_json(self) -> dict[str, Any]:
        """All values as JSON types, with lists for tuples."""
        return json.loads(json.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """All values, in the form that `read_configuration` takes."""
        return {n: as_dict(p) if is_dataclass(p) else p for n, p in vars(self).items()}


def configuration_file(name: str) -> Path:
    """The file of a configuration that comes with unet_jax, such as `em`.

    Raises:
      InputError: there is no configuration of this name.
    """
    here = Path(__file__).parent
    folder = here / "configs"
    if not folder.is_dir():
        folder = here.parent / "configs"  # in the source tree
    file = folder / f"{name}.py"
    if not file.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.py")))
        raise InputError(
            f"There is no configuration {name!r} in unet_jax; expected one of {known}."
        )
    return file


def named_config(name: str) -> ConfigDict:
    """A configuration that comes with unet_jax, to be changed and passed to `fit`.

        config = unet_jax.named_config("folder")
        config.data.images = "my/images"

    Args:
      name: of a file in `configs/`, such as "em".

    Raises:
      InputError: there is no configuration of this name.

    Examples:
      >>> named_config("em").model.depth
      5
    """
    return runpy.run_path(str(configuration_file(name)))["get_config"]()


def read_configuration(values: Mapping[str, Any] | Configuration) -> Configuration:
    """The configuration given by a `configs/*.py` or by a checkpoint; the rest has its defaults.

    A `model.dtype` of "auto" is replaced by what suits this machine's device, so that a record says
    what it was.

    Raises:
      InputError: with a line for each unknown key and each value that makes no sense.
    """
    if isinstance(values, Configuration):
        return values
    texts = ("class_names", "class_colours")
    unknown = [key for key in values if key not in (*_PARTS, *texts, "data")]
    if unknown:
        raise InputError(
            *(f"config.{key} is not known, see docs/configuration.md." for key in unknown)
        )
    problems = Problems()
    parts: dict[str, Any] = {}
    for name, kind in _PARTS.items():
        with problems.collected():
            part = values.get(name, {})
            if not hasattr(part, "items"):
                raise InputError(f"config.{name} must be a group of values, not {part!r}.")
            if kind is UNet and part.get("dtype") == "auto":
                part = {**part, "dtype": fastest_dtype()}
            parts[name] = read(kind, part, f"config.{name}")
    with problems.collected():
        parts["data"] = read_data(values.get("data", {"source": "isbi2012"}))
    problems.raise_all()
    for name in texts:
        if name in values:
            parts[name] = tuple(values[name]) if _are_texts(values[name]) else values[name]
    return Configuration(**parts)


def _are_texts(value) -> bool:
    return isinstance(value, list | tuple) and all(type(text) is str for text in value)


def _are_colours(value) -> bool:
    if not _are_texts(value):
        return False
    if not value:
        return True
    from matplotlib.colors import is_color_like  # slow to load

    return all(map(is_color_like, value))
