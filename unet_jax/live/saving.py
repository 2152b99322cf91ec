"""A network that learnt from strokes, and the strokes, as an ordinary run in a folder."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tifffile

from unet_jax import checkpoint
from unet_jax.checked_settings import as_dict
from unet_jax.checkpoint.cell_settings import SETTINGS
from unet_jax.checkpoint.steps import saved_steps
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.data.folder import read_folder
from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.example import IGNORED, Example, image_sha256, sha256
from unet_jax.files.output import complete, complete_text, lock, probe, unlocking
from unet_jax.instances import InstanceSettings
from unet_jax.live.learning import tile_side
from unet_jax.live.strokes import Painted
from unet_jax.model import Model
from unet_jax.optimiser import OptimiserSettings, create_optimiser
from unet_jax.provenance import versions
from unet_jax.run_record import Record, Training
from unet_jax.sources import Folder
from unet_jax.train_step import TrainState

# What a mask holds where nothing is painted.
_NOT_PAINTED = 255
_IMAGES, _MASKS = "images", "masks"
# Names the files that `save_painted` has written; nothing else is ever replaced.
_WRITTEN = "painted.json"


@unlocking()
def save_painted(
    folder: str | Path,
    model: Model,
    painted: Mapping[str, Painted],
    class_names: tuple[str, ...],
    *,
    step: int,
    cells: InstanceSettings = InstanceSettings(),
    replace: bool = False,
) -> None:
    """Saves a network as a run that the programs and `load` take; `eval.py` needs --images.

    Beside its checkpoint, the folder holds `images/` and `masks/`, as `configs/folder.py` takes
    them; what is not painted is 255 there.

    Args:
      folder: the run's folder, new or empty.
      model: a single network of scale 1.
      painted: the images with their strokes, by a name that becomes the file's.
      class_names: one for each class of the network, the background first.
      step: how many steps it has been trained for.
      cells: how single cells are found.
      replace: whether the folder may hold what was saved there by this function before.

    Raises:
      InputError: the folder is not empty, or cannot be written to.
      RunFailed: something cannot be written, such as on a full disk.
    """
    folder = Path(folder)
    images, masks = folder / _IMAGES, folder / _MASKS
    if folder.exists() and any(folder.iterdir()) and not (replace and is_painted(folder)):
        raise InputError(f"{folder}: is not empty; give a new folder, or an empty one.")
    pixels = sum(p.image.nbytes + p.strokes.size for p in painted.values())
    probe(folder, pixels + 5 * sum(x.nbytes for x in jax.tree.leaves(model.params)))
    lock(folder)
    examples = [
        Example(name, _storable(image), strokes, np.zeros(strokes.shape, np.int32))
        for name, (image, strokes) in painted.items()
    ]
    configuration = _configuration(model, class_names, folder, step)
    params = jax.tree.map(lambda x: jnp.asarray(x[0]), model.params)
    optimiser = create_optimiser(configuration.optimiser, steps=configuration.train.steps)
    state = TrainState(jnp.int32(step), params, optimiser.init(params))
    record = Record(
        network=model.network,
        channels=model.channels,
        percentiles=model.percentiles,
        step=step,
        training=Training(
            config=configuration,
            class_weights=[1.0] * model.network.classes,
            splits={"train": [e.name for e in examples], "validation": [], "test": []},
            data={e.name: sha256(e) for e in examples},
            images={e.name: image_sha256(e.image) for e in examples},
            started_from=None,
            fold=0,
            folds=1,
            command=None,
            versions=versions(),
        ),
    )
    try:
        for there in (images, masks):
            there.mkdir(exist_ok=True)
        for name in set(_written(folder)) - painted.keys():
            for there in (images, masks):
                (there / f"{name}.tif").unlink(missing_ok=True)
        with complete_text(folder / _WRITTEN) as opened:
            json.dump([*painted], opened, indent=1)
        for name, image, strokes, _ in examples:
            _write(images / f"{name}.tif", image)
            mask = np.where(strokes == IGNORED, _NOT_PAINTED, strokes)
            _write(masks / f"{name}.tif", mask.astype(np.uint8))
        with complete_text(folder / SETTINGS) as opened:
            json.dump(as_dict(cells), opened, indent=1)
        with _replaced(folder / "checkpoints"):
            checkpoint.save(folder, state, record)
    except OSError as error:
        raise RunFailed(f"{folder}: cannot be saved ({one_line(error)}).") from error


@contextlib.contextmanager
def _replaced(there: Path) -> Iterator[None]:
    """Puts a folder aside while a new one is made; brings it back if that fails."""
    aside = there.with_name(f".{there.name}-before")
    shutil.rmtree(aside, ignore_errors=True)
    if there.exists():
        there.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(there, ignore_errors=True)
        if aside.exists():
            aside.rename(there)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def open_painted(folder: str | Path) -> tuple[Model, dict[str, Painted]]:
    """The network that `save_painted` has saved, and the images with their strokes.

    Raises:
      InputError: it has not saved anything there, or the files cannot be read.
    """
    folder = Path(folder)
    if not is_painted(folder):
        raise InputError(f"{folder}: holds no network with the strokes that it learnt from.")
    model = checkpoint.load(folder)
    examples = read_folder(
        folder / _IMAGES,
        folder / _MASKS,
        mask_rule="classes",
        classes=model.network.classes,
        ignore_value=_NOT_PAINTED,
        channels=model.channels,
    )
    return model, {e.name: Painted(e.image, e.labels) for e in examples}


def is_painted(folder: Path) -> bool:
    """Whether `save_painted` has saved a run there."""
    return (folder / _WRITTEN).is_file() and bool(saved_steps(folder))


def _written(folder: Path) -> list[str]:
    """The names of the images that were saved there before."""
    try:
        return json.loads((folder / _WRITTEN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []


def _storable(pixels: np.ndarray) -> np.ndarray:
    """The same numbers in a dtype that OME knows."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.dtype == np.float16:
        return pixels.astype(np.float32)
    if pixels.dtype.kind == "f" or pixels.dtype.itemsize < 8:
        return pixels
    smallest = np.result_type(*map(np.min_scalar_type, (pixels.min(), pixels.max())))
    return pixels.astype(smallest if smallest.itemsize < 8 else np.float64)


def _write(file: Path, pixels: np.ndarray) -> None:
    """An image [H, W] or [H, W, C], or a mask."""
    axes = "YX" if pixels.ndim == 2 else "CYX"
    pixels = pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    with complete(file) as unfinished:
        tifffile.imwrite(
            unfinished,
            pixels,
            photometric="minisblack",
            compression="zlib",
            ome=True,
            metadata={"axes": axes},
        )


def _configuration(
    model: Model, class_names: tuple[str, ...], folder: Path, step: int
) -> Configuration:
    """With which `train.py` would continue on the same files."""
    return Configuration(
        model=model.network,
        class_names=class_names,
        data=Folder(
            images=str(folder / _IMAGES),
            labels=str(folder / _MASKS),
            mask_rule="classes",
            ignore_value=_NOT_PAINTED,
        ),
        optimiser=OptimiserSettings(kind="adam", peak_learning_rate=1e-3, warmup_steps=0),
        train=TrainSettings(steps=max(step, 1), tile_side=tile_side(model.network)),
    )
