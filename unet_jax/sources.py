"""Where a run's annotated images come from: the `data` part of a configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from unet_jax.checked_settings import check, read, setting
from unet_jax.errors import InputError

_SCALE = "above 0 and at most 10"
_RANGE = "two whole numbers, first and last + 1"
_FRACTION = "a number between 0 and 1"


@dataclass(frozen=True)
class Isbi2012:
    """The electron micrographs of the ISBI 2012 challenge.

    The test labels are hidden, so the 30 annotated slices are divided.

    Attributes:
      source: the name of this kind of data.
      scale: of the images as the network sees them; 0.5 = half the resolution.
      train: slices to train on: first, last + 1.
      validation: slices used to choose the best step.
      test: slices that only `eval.py` opens.
    """

    source: str = setting("isbi2012", one_of=("isbi2012",))
    scale: float = setting(1.0, above=0, at_most=10, wanted=_SCALE)
    train: tuple[int, int] = setting((0, 22), wanted=_RANGE)
    validation: tuple[int, int] = setting((22, 25), wanted=_RANGE)
    test: tuple[int, int] = setting((25, 30), wanted=_RANGE)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


@dataclass(frozen=True)
class Synthetic:
    """Synthetic electron micrographs.

    Attributes:
      source: the name of this kind of data.
      scale: of the images as the network sees them; 0.5 = half the resolution.
      seed: another number makes other pictures.
      height: of each picture, in pixels.
      width: of each picture, in pixels.
      train: pictures to train on: first, last + 1.
      validation: pictures used to choose the best step.
      test: pictures that only `eval.py` opens.
    """

    source: str = setting("synthetic", one_of=("synthetic",))
    scale: float = setting(1.0, above=0, at_most=10, wanted=_SCALE)
    seed: int = setting(0, at_least=0)
    height: int = setting(256, at_least=1, at_most=4096)
    width: int = setting(256, at_least=1, at_most=4096)
    train: tuple[int, int] = setting((0, 48), wanted=_RANGE)
    validation: tuple[int, int] = setting((48, 52), wanted=_RANGE)
    test: tuple[int, int] = setting((52, 60), wanted=_RANGE)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


@dataclass(frozen=True)
class Folder:
    """The user's own images and masks, see `data.folder.read_folder`.

    Attributes:
      source: the name of this kind of data.
      scale: of the images as the network sees them; 0.5 = half the resolution.
      images: the folder of images.
      labels: the folder of masks.
      mask_rule: what the numbers in a mask mean: binary, classes or instances.
      ignore_value: mask pixels that do not count, such as 255; -1 = there are none.
      minus_one: what -1 in a mask means: background or ignored; empty = there is none.
      validation_fraction: share of the files used to choose the best step.
      test_fraction: share of the files that only `eval.py` opens.
      split_seed: another number draws other files.
    """

    source: str = setting("folder", one_of=("folder",))
    scale: float = setting(1.0, above=0, at_most=10, wanted=_SCALE)
    images: str = setting("images")
    labels: str = setting("masks")
    mask_rule: str = setting("binary")
    ignore_value: int = setting(-1)
    minus_one: str = setting("")
    validation_fraction: float = setting(0.15, wanted=_FRACTION)
    test_fraction: float = setting(0.15, wanted=_FRACTION)
    split_seed: int = setting(0)

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


@dataclass(frozen=True)
class CellTracking:
    """A data set of the Cell Tracking Challenge: one sequence to train on and one to test on.

    Attributes:
      source: the name of this kind of data.
      scale: of the images as the network sees them; 0.5 = half the resolution.
      dataset: its published name, or a folder in the challenge's layout.
      train_sequence: the sequence to train on, such as "01".
      test_sequence: the sequence that only `eval.py` opens.
      validation_every: every n-th annotated frame is used to choose the best step.
      truth: of the training frames: gold, or silver, which is computed and covers all frames.
      partly_annotated: frames in which not all cells are annotated, or ("all",): background more
        than 20 pixels from any annotated cell is ignored there.
    """

    source: str = setting("cell_tracking", one_of=("cell_tracking",))
    scale: float = setting(1.0, above=0, at_most=10, wanted=_SCALE)
    dataset: str = setting("DIC-C2DH-HeLa")
    train_sequence: str = setting("01")
    test_sequence: str = setting("02")
    validation_every: int = setting(4)
    truth: str = setting("gold")
    partly_annotated: tuple[str, ...] = setting((), wanted="names of frames")

    def __post_init__(self):
        """Raises InputError for a value that makes no sense."""
        check(self)


Data = Isbi2012 | Synthetic | Folder | CellTracking


def read_data(values: Mapping[str, Any]) -> Data:
    """The settings of the source that `values` names.

    Raises:
      InputError: there is no such source; with a line for each unknown key and each value that
        makes no sense.
    """
    if not hasattr(values, "items"):
        raise InputError(f"config.data must be a group of values, not {values!r}.")
    name = values.get("source")
    for kind in get_args(Data):
        if kind.source == name:
            return read(kind, values, "config.data")
    known = "isbi2012, cell_tracking, folder or synthetic"
    raise InputError(f"config.data.source must be {known}, not {name!r}.")
