"""The layers in which the viewer shows what a network says of an image."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from unet_jax.viewer.planes import Index, Planes

# Of the classes, in strokes and results; of more than these, again from the first.
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22")

_WRITTEN = "unet_jax checksums"  # of the cells that were found, by plane, in a layer's metadata


def class_colours(classes: int) -> DirectLabelColormap:
    """For a labels layer in which 1 is the first class, and 0 and all others nothing."""
    colours: dict[int | None, str] = {None: "transparent", 0: "transparent"}
    colours |= {label + 1: _COLOURS[label % len(_COLOURS)] for label in range(classes)}
    return DirectLabelColormap(color_dict=colours)


def made_here(image: Any, kind: str) -> dict[str, Any]:
    """The metadata of a layer that the plugin makes for an image layer, such as its strokes."""
    return {"unet_jax": (image.name, kind)}


def kind_made_here(layer: Any) -> str | None:
    """What the plugin has made a layer for, such as strokes; None = it is the user's."""
    return layer.metadata.get("unet_jax", (None, None))[1]


def placed_like(image: Any) -> dict[str, Any]:
    """Where a layer of single-channel planes lies that belongs to an image layer."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units")
    return {name: getattr(image, name) for name in names}


def _is_corrected(layer: Any, plane: Index) -> bool:
    """Whether a plane of cells is no longer what was written to it."""
    cells = np.ascontiguousarray(layer.data[plane])
    written = layer.metadata.get(_WRITTEN, {}).get(plane)
    return bool(cells.any()) if written is None else zlib.crc32(cells.data) != written


class Results:
    """Probabilities, classes and cells of an image, in layers that are made when first needed.

    The layers are named after the image; those that have been made before are written to. Cells
    that have been corrected since stay, in a layer that is renamed.

    Attributes:
      image: its layer.
    """

    def __init__(self, viewer: Any, image: Any, class_names: Sequence[str]):
        """For an image layer, and the names of the classes, the background first."""
        self._viewer, self.image = viewer, image
        self._names = tuple(class_names)
        self._colours = class_colours(len(class_names))
        self._shape = Planes.of(image).shape
        self._has_cells = False

    def write(self, plane: Index, rows: slice, columns: slice, probabilities: np.ndarray) -> None:
        """Shows probabilities, float32 [h, w, classes], and the classes of a part of a plane."""
        part = (*plane, rows, columns)
        if self.image not in self._viewer.layers:
            return
        for label, name in enumerate(self._names[1:], 1):
            layer = self._layer(f"probability of {name}", np.float32)
            layer.data[part] = probabilities[..., label]
            layer.refresh()
        classes = self._layer("classes", np.uint8)
        if classes.colormap is not self._colours:
            classes.colormap = self._colours
        classes.data[part] = probabilities.argmax(-1) + 1
        classes.refresh()

    def write_cells(self, plane: Index, cells: np.ndarray) -> Any:
        """Shows the cells of a plane, int32 [H, W]; returns their layer, None without the image."""
        if self.image not in self._viewer.layers:
            return None
        layer = self._layer("cells", np.int32)
        # Before anything of an earlier segmentation is overwritten, all of its planes are compared.
        planes = [plane] if self._has_cells else np.ndindex(self._shape[:-2])
        if any(_is_corrected(layer, p) for p in planes):  # which stays, as a layer of the user's
            layer.name, layer.metadata = f"{layer.name} corrected", {}
            layer = self._layer("cells", np.int32)
        self._has_cells = True
        layer.data[plane] = cells
        layer.metadata.setdefault(_WRITTEN, {})[plane] = zlib.crc32(cells.data)
        layer.refresh()
        self._layer("classes", np.uint8).visible = False  # the colours of both would mix
        return layer

    def _layer(self, kind: str, dtype: Any) -> Any:
        name, metadata = f"{self.image.name} {kind}", made_here(self.image, kind)
        for layer in self._viewer.layers:
            is_it = layer.metadata.get("unet_jax") == metadata["unet_jax"]
            if is_it and layer.data.shape == self._shape:
                return layer
        active = self._viewer.layers.selection.active
        options = {"name": name, "metadata": metadata, **placed_like(self.image)}
        data = np.zeros(self._shape, dtype)
        if dtype == np.float32:
            options |= {"visible": False, "contrast_limits": (0, 1)}
            layer = self._viewer.add_image(data, **options)
        else:
            layer = self._viewer.add_labels(data, opacity=0.35, **options)
        strokes = f"{self.image.name} strokes"
        if strokes in self._viewer.layers:  # they stay above
            self._viewer.layers.move(self._viewer.layers.index(strokes), -1)
        self._viewer.layers.selection.active = active  # whoever paints goes on painting
        return layer
