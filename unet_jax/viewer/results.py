"""The layers in which the viewer shows what a network says of an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from napari.utils.colormaps import DirectLabelColormap

from unet_jax.viewer.planes import Planes

Index = tuple[int, ...]
# Of the classes, in strokes and results; of more than these, again from the first.
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#bcbd22")


def class_colours(classes: int) -> DirectLabelColormap:
    """For a labels layer in which 1 is the first class, and 0 and all others nothing."""
    colours: dict[int | None, str] = {None: "transparent", 0: "transparent"}
    colours |= {label + 1: _COLOURS[label % len(_COLOURS)] for label in range(classes)}
    return DirectLabelColormap(color_dict=colours)


class Results:
    """Probabilities, classes and cells of an image, in layers that are made when first needed.

    The layers are named after the image; those that exist already are written to.
    """

    def __init__(self, viewer: Any, image: Any, class_names: Sequence[str]):
        """For an image layer, and the names of the classes, the background first."""
        self._viewer, self._image = viewer, image
        self._names = tuple(class_names)
        self._shape = Planes.of(image).shape

    def write(self, plane: Index, rows: slice, columns: slice, probabilities: np.ndarray) -> None:
        """Shows probabilities, float32 [h, w, classes], and the classes of a part of a plane."""
        part = (*plane, rows, columns)
        for label, name in enumerate(self._names[1:], 1):
            layer = self._layer(f"probability of {name}", np.float32)
            layer.data[part] = probabilities[..., label]
            layer.refresh()
        classes = self._layer("classes", np.uint8)
        classes.data[part] = probabilities.argmax(-1) + 1
        classes.refresh()

    def write_cells(self, plane: Index, cells: np.ndarray) -> Any:
        """Shows the cells of a plane, int32 [H, W]; returns their layer."""
        is_new = f"{self._image.name} cells" not in self._viewer.layers
        layer = self._layer("cells", np.int32)
        layer.data[plane] = cells
        layer.refresh()
        if is_new:
            self._layer("classes", np.uint8).visible = False  # the colours of both would mix
        return layer

    def _layer(self, kind: str, dtype: Any) -> Any:
        name = f"{self._image.name} {kind}"
        if name in self._viewer.layers:
            layer = self._viewer.layers[name]
            if layer.data.shape == self._shape and layer.data.dtype == dtype:
                return layer
            self._viewer.layers.remove(layer)
        active = self._viewer.layers.selection.active
        ndim = len(self._shape)
        place = {"scale": self._image.scale[-ndim:], "translate": self._image.translate[-ndim:]}
        data = np.zeros(self._shape, dtype)
        if dtype == np.float32:
            layer = self._viewer.add_image(
                data, name=name, visible=False, contrast_limits=(0, 1), **place
            )
        else:
            layer = self._viewer.add_labels(data, name=name, opacity=0.35, **place)
        if kind == "classes":
            layer.colormap = class_colours(len(self._names))
        strokes = f"{self._image.name} strokes"
        if strokes in self._viewer.layers:  # they stay above
            self._viewer.layers.move(self._viewer.layers.index(strokes), -1)
        self._viewer.layers.selection.active = active  # whoever paints goes on painting
        return layer
