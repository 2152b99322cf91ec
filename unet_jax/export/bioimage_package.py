"""A package of the BioImage Model Zoo: the ONNX graph, and what other programs must know about it.

Programs that read such packages cut large images into tiles, so the grey values are normalised
first, over the whole image. The zoo's format has no mean of the pixels between two percentiles,
which `unet_jax.grey_values` uses. The package uses mean and standard deviation of all pixels, then
a fixed gain and offset, with which an example image is normalised exactly. The cost on other
images, as the mean difference of the probabilities and the pixels that get another class:

                            zero_mean_unit_variance   and gain, offset    scale_range of 1, 99 %
    demo.py                 0.004, 0.33 %             0.0002, 0.02 %      0.004, 0.28 %
    ISBI 2012, width 16     0.003, 0.22 %             0.0001, 0.01 %      0.002, 0.12 %
    dic_hela.py, tested 02  0.015, 1.46 %             0.0011, 0.10 %      0.008, 0.88 %
    dic_hela.py, tested 01  0.017, 1.95 %             0.0034, 0.44 %      0.015, 1.53 %

A gain and offset for `scale_range` were those of the same image.
"""

import dataclasses
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from bioimageio.spec import save_bioimageio_package_to_stream
from bioimageio.spec.generic.v0_3 import Author, CiteEntry, Doi, FileDescr, LicenseId
from bioimageio.spec.model import v0_5
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from pydantic import ValidationError

from unet_jax.errors import InputError, one_line
from unet_jax.export.onnx_graph import OPSET, halo, size_step
from unet_jax.grey_values import grey_value_statistics
from unet_jax.mirroring import mirror_indices
from unet_jax.model import Model
from unet_jax.overlap_tile import predict_tiled
from unet_jax.resizing import resized, scaled_size

_EXAMPLE_SIDE = 512  # pixels, at most: the example is part of the package
# As the description names them.
_IMAGE, _YX = v0_5.TensorId("image"), [v0_5.AxisId("y"), v0_5.AxisId("x")]


def bioimage_package(
    model: Model,
    graph: bytes,
    image: np.ndarray,
    *,
    name: str,
    authors: Sequence[str],
    licence: str | None,
) -> bytes:
    """The package as a ZIP file that the zoo's own validator has accepted.

    Args:
      model: from `unet_jax.load`.
      graph: of the model, the file that `onnx_graph` makes.
      image: real [H, W] or [H, W, C], an example, of which the middle 512 x 512 pixels become part
        of the package.
      name: of the model, according to the zoo's rules.
      authors: their names.
      licence: an SPDX identifier, such as CC-BY-4.0.

    Raises:
      InputError: the example cannot be normalised; a name, author or licence breaks the zoo's
        rules.
    """
    _check(name, authors, licence)
    example = _example(model, image)
    preprocessing = _normalisation(model, example)
    # Of the network's scale already; in float32, in which the graph computes.
    network = model.network.clone(dtype="float32")
    probabilities = predict_tiled(dataclasses.replace(model, scale=1.0, network=network), example)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "weights.onnx").write_bytes(graph)
        (folder / "README.md").write_text(_documentation(model, name), encoding="utf-8")
        _save_cover(folder / "cover.png", example, probabilities)
        for end, array in (("input", example), ("output", probabilities)):
            planes = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
            np.save(folder / f"test_{end}.npy", planes[None])
            tifffile.imwrite(folder / f"sample_{end}.tif", planes, photometric="minisblack")
        try:
            described = _described(model, folder, preprocessing, name, authors, licence)
        except ValidationError as error:
            raise InputError(f"The model zoo's validator refuses it: {one_line(error)}.") from error
        stream = io.BytesIO()
        save_bioimageio_package_to_stream(described, output_stream=stream)
        return stream.getvalue()


def _check(name: str, authors: Sequence[str], licence: str | None) -> None:
    """Raises a short InputError for what the zoo would refuse at length."""
    problems = []
    if not re.fullmatch(r"[A-Za-z0-9_+() -]{5,128}", name):
        problems.append(
            f"--name: expected 5 to 128 letters, digits, spaces or _+-(), not {name!r}."
        )
    if any("/" in author or not author.strip() for author in authors):
        problems.append(f"--author: expected names without a slash, not {', '.join(authors)!r}.")
    try:
        if licence is not None:
            LicenseId(licence)
    except ValidationError:
        problems.append(
            f"--licence: expected an SPDX identifier such as CC-BY-4.0, not {licence!r}."
        )
    if problems:
        raise InputError(*problems)


def _example(model: Model, image: np.ndarray) -> np.ndarray:
    """The middle of the image at the network's scale, mirrored where it is too small."""
    if model.scale != 1:
        image = resized(image, scaled_size(image.shape[:2], model.scale))
    step, smallest = size_step(model.network.depth), _smallest_tile(model.network.depth)

    def middle(size: int) -> np.ndarray:
        side = max(smallest, min(size, _EXAMPLE_SIDE) // step * step)
        start = (size - side) // 2
        return mirror_indices(start, start + side, size)

    return image[np.ix_(*map(middle, image.shape[:2]))].astype(np.float32)


def _smallest_tile(depth: int) -> int:
    return 2 * halo(depth) + size_step(depth)


def _normalisation(model: Model, example: np.ndarray) -> list[v0_5.PreprocessingDescr]:
    """Steps of the zoo that normalise the example as training does."""
    image = example.reshape(*example.shape[:2], -1).astype(np.float64)
    try:
        wanted_mean, wanted_std = grey_value_statistics(image, model.percentiles)
    except ValueError as error:
        raise InputError(f"The example image {error}.") from error
    mean, std = image.mean((0, 1)), image.std((0, 1))
    if not (wanted_std > 0).all():
        raise InputError("The example image has no contrast in a channel; give another --image.")
    gain, offset = std / wanted_std, (mean - wanted_mean) / wanted_std
    steps: list[v0_5.PreprocessingDescr] = [
        v0_5.ZeroMeanUnitVarianceDescr(
            kwargs=v0_5.ZeroMeanUnitVarianceKwargs(
                axes=_YX,
                # Grey values may be as small as metres of a surface's height.
                eps=min(1e-6, 1e-6 * float(std.min())),
            )
        )
    ]
    # The zoo refuses a step that changes nothing.
    if not (np.allclose(gain, 1) and np.allclose(offset, 0)):
        kwargs = (
            v0_5.ScaleLinearKwargs(gain=float(gain[0]), offset=float(offset[0]))
            if model.channels == 1
            else v0_5.ScaleLinearAlongAxisKwargs(
                axis=v0_5.AxisId("channel"), gain=gain.tolist(), offset=offset.tolist()
            )
        )
        steps.append(v0_5.ScaleLinearDescr(kwargs=kwargs))
    return steps


def _described(
    model: Model,
    folder: Path,
    preprocessing: list[v0_5.PreprocessingDescr],
    name: str,
    authors: Sequence[str],
    licence: str | None,
) -> v0_5.ModelDescr:
    """What the zoo must know about the files in the folder."""
    weights = v0_5.OnnxWeightsDescr(source=folder / "weights.onnx", opset_version=OPSET)
    record = model.record.to_json() if model.record else {}
    kept = ("versions", "step", "scale", "percentiles")
    ours = {key: record[key] for key in kept if key in record}
    return v0_5.ModelDescr(
        name=name,
        description=_description(model),
        authors=[Author(name=author) for author in authors],
        license=None if licence is None else LicenseId(licence),
        inputs=[_input(model, folder, preprocessing)],
        outputs=[_output(model, folder)],
        weights=v0_5.WeightsDescr(onnx=weights),
        documentation=FileDescr(source=folder / "README.md"),
        covers=[FileDescr(source=folder / "cover.png")],
        tags=["unet", "2d", "semantic-segmentation", "jax"],
        cite=[
            CiteEntry(
                text="Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical "
                "Image Segmentation. MICCAI 2015",
                doi=Doi("10.1007/978-3-319-24574-4_28"),
            )
        ],
        config=v0_5.Config.model_validate({"unet_jax": ours}),
    )


def _input(
    model: Model, folder: Path, preprocessing: list[v0_5.PreprocessingDescr]
) -> v0_5.InputTensorDescr:
    depth = model.network.depth
    size = v0_5.ParameterizedSize(min=_smallest_tile(depth), step=size_step(depth))
    return v0_5.InputTensorDescr(
        id=_IMAGE,
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=[f"channel{i}" for i in range(model.channels)]),
            *[v0_5.SpaceInputAxis(id=axis, size=size, concatenable=True) for axis in _YX],
        ],
        data=v0_5.IntervalOrRatioDataDescr(type="float32"),
        pad=v0_5.ReflectPadding(mode="reflect"),
        preprocessing=preprocessing,
        test_tensor=FileDescr(source=folder / "test_input.npy"),
        sample_tensor=FileDescr(source=folder / "sample_input.tif"),
    )


def _output(model: Model, folder: Path) -> v0_5.OutputTensorDescr:
    def space(axis: v0_5.AxisId) -> v0_5.SpaceOutputAxisWithHalo:
        size = v0_5.SizeReference(tensor_id=_IMAGE, axis_id=axis)
        return v0_5.SpaceOutputAxisWithHalo(id=axis, size=size, halo=halo(model.network.depth))

    return v0_5.OutputTensorDescr(
        id=v0_5.TensorId("probabilities"),
        axes=[
            v0_5.BatchAxis(),
            v0_5.ChannelAxis(channel_names=list(model.class_names)),
            *map(space, _YX),
        ],
        data=v0_5.IntervalOrRatioDataDescr(type="float32", range=(0, 1)),
        test_tensor=FileDescr(source=folder / "test_output.npy"),
        sample_tensor=FileDescr(source=folder / "sample_output.tif"),
    )


def _description(model: Model) -> str:
    """What the model does, in a few sentences."""
    classes = ", ".join(model.class_names)
    description = f"U-Net that gives each pixel of an image the probabilities of {classes}."
    if model.scale != 1:
        verb = "Shrink" if model.scale < 1 else "Enlarge"
        description += f" {verb} images to {model.scale:g} times their size first."
    return description


def _save_cover(file: Path, example: np.ndarray, probabilities: np.ndarray) -> None:
    """Saves the example next to the probability of all classes except the first."""
    figure = Figure(figsize=(8, 4), dpi=80)  # the zoo wants 2 : 1 and at most 500 KB
    image = example if example.ndim == 2 else example.mean(-1)
    low, high = np.percentile(image, [0.5, 99.5])
    for left, picture, limits in (
        (0, image, (low, high)),
        (0.5, 1 - probabilities[..., 0], (0, 1)),
    ):
        axes = figure.add_axes((left, 0, 0.5, 1))
        axes.imshow(picture, cmap="gray", vmin=limits[0], vmax=limits[1])
        axes.set_axis_off()
    figure.savefig(file)


def _documentation(model: Model, name: str) -> str:
    """The package's README."""
    environment = Environment(
        loader=PackageLoader("unet_jax.export"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    depth = model.network.depth
    return environment.get_template("package.md.jinja").render(
        model=model,
        name=name,
        description=_description(model),
        size_step=size_step(depth),
        halo=halo(depth),
        smallest=_smallest_tile(depth),
    )
