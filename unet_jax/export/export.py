"""An export run: from a checkpoint to files that programs without JAX can use."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet_jax import checkpoint
from unet_jax.data.folder import read_images
from unet_jax.data.splits import read_splits
from unet_jax.errors import InputError
from unet_jax.files.output import complete, writable_folder
from unet_jax.model import Model
from unet_jax.run_record import Training


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of `export`.

    Attributes:
      files: the ONNX file and the package, with their sizes in bytes.
      scale: of the images as the network takes them: 0.5 = half the resolution.
    """

    files: dict[Path, int]
    scale: float


def export(
    workdir: str | Path,
    *,
    output: str | Path,
    step: str | int = "best",
    image: str | Path | None = None,
    name: str | None = None,
    authors: Sequence[str] = (),
    licence: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes NAME.onnx, the network, and NAME.zip, a package of the BioImage Model Zoo.

    A cross-validation is exported as the ensemble of its folds.

    Args:
      workdir: the folder of the training run, or a network of the package, which also needs
        `image`.
      output: folder to write to.
      step: see `checkpoint.load`.
      image: file or folder whose first image becomes the package's example; by default the first
        image that the run left out.
      name: of the model, by default that of `workdir`.
      authors: of the model.
      licence: an SPDX identifier.
      overwrite: whether existing files may be replaced.

    Raises:
      InputError: the checkpoint or image cannot be used, the zoo refuses a value, or a Python
        package is not installed; no file has been written.
    """
    try:
        from unet_jax.export.bioimage_package import bioimage_package
        from unet_jax.export.onnx_graph import onnx_graph
    except ModuleNotFoundError as error:
        raise InputError(
            f"The package {error.name} is not installed; pip install 'unet-jax[export]' installs "
            "everything that an export needs."
        ) from error
    workdir, output = Path(workdir), Path(output)
    model = checkpoint.load(workdir, step)
    if model.training is None:
        raise InputError(f"{workdir}: its checkpoint does not record its training.")
    name = f"unet_{workdir.resolve().name}" if name is None else name
    graph = onnx_graph(model).SerializeToString()
    example = _example(model, image, model.training)
    package = bioimage_package(model, graph, example, name=name, authors=authors, licence=licence)
    files = {f"{name}.onnx": graph, f"{name}.zip": package}
    writable_folder(output, tuple(files), overwrite)
    for file, content in files.items():
        with complete(output / file) as unfinished:
            unfinished.write_bytes(content)
    sizes = {output / file: len(content) for file, content in files.items()}
    return Exported(sizes, model.scale)


def _example(model: Model, image: str | Path | None, training: Training) -> np.ndarray:
    """The image at this path, or the first one that the run left out."""
    if image is not None:
        return read_images(image, model.channels)[0][1]
    try:
        splits = read_splits(training.config.data, model.network.classes)
    except InputError as error:
        raise InputError(*error.args, "Or give your own example: --image=FILE.") from error
    return splits["test"][0].image
