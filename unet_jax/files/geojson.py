"""Cells as GeoJSON for QuPath: outlines, classes and measurements."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_jax.files.hyperstack import Frame
from unet_jax.files.output import complete_text
from unet_jax.outlines import Polygon, outlines


def write_geojson(
    file: Path,
    pages: Sequence[np.ndarray],
    tables: Sequence[Mapping[str, np.ndarray]],
    frame: Frame,
    class_names: Sequence[str],
    colours: np.ndarray,
) -> None:
    """Writes a feature for each cell: a polygon in pixels, its number, class and measurements.

    Args:
      file: to write, .geojson.
      pages: int [H, W] for each page, the cell each pixel belongs to, 0 = none.
      tables: for each page, the table of `measure`.
      frame: of the image on whose pages the cells are shown.
      class_names: by class.
      colours: uint8 [classes, 3].
    """
    with complete_text(file) as opened:
        opened.write('{"type": "FeatureCollection", "features": [')
        comma = "\n"
        for page, (cells, table) in enumerate(zip(pages, tables, strict=True)):
            place = frame.place(page)
            plane = {"c": -1} | {axis.lower(): place.get(axis, 0) for axis in "ZT"}
            rows = zip(*table.values(), strict=True)
            for (number, polygons), row in zip(outlines(cells).items(), rows, strict=True):
                values = dict(zip(table, row, strict=True))
                kind = int(values.get("class", 1))
                feature = {
                    "type": "Feature",
                    "geometry": _geometry(polygons) | {"plane": plane},
                    "properties": {
                        "objectType": "detection",
                        "name": str(number),
                        "classification": {
                            "name": class_names[kind],
                            "color": colours[kind].tolist(),
                        },
                        "measurements": _measurements(values),
                    },
                }
                opened.write(comma + json.dumps(feature))
                comma = ",\n"
        opened.write("\n]}\n")


def _geometry(polygons: Sequence[Polygon]) -> dict[str, Any]:
    rings = [
        [[*ring.tolist(), ring[0].tolist()] for ring in (polygon.outline, *polygon.holes)]
        for polygon in polygons
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _measurements(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that are numbers, as QuPath requires."""
    numbers = {
        name: float(value) for name, value in values.items() if name not in ("number", "class")
    }
    return {name: value for name, value in numbers.items() if not math.isnan(value)}
