"""Outlines of cells for the ROI Manager of ImageJ (Fiji)."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet_jax.files.hyperstack import Frame
from unet_jax.files.output import complete
from unet_jax.outlines import Polygon, outlines

# The commands of a path of `java.awt.geom`.
_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0


def write_rois(file: Path, pages: Sequence[np.ndarray], frame: Frame) -> None:
    """Writes the outline of each cell under its number, or PAGE-NUMBER if there are several pages.

    Args:
      file: to write, .zip.
      pages: int [H, W] for each page, the cell each pixel belongs to, 0 = none.
      frame: of the image on whose pages the outlines are shown.
    """
    # A stack of one axis has only a position for each page, a hyperstack one along each axis.
    is_stack = len(frame.axes) == 1 and frame.channels == 1
    with complete(file) as unfinished, zipfile.ZipFile(unfinished, "w") as opened:
        for page, cells in enumerate(pages):
            place = frame.place(page)
            for number, polygons in outlines(cells).items():
                roi = _roi(polygons)
                roi.name = f"{page:04d}-{number:04d}" if frame.axes else f"{number:04d}"
                if is_stack:
                    roi.position = page + 1
                else:
                    roi.z_position, roi.t_position = (
                        place[axis] + 1 if axis in place else 0 for axis in "ZT"
                    )
                # Always of the same date, so that the same cells make the same file.
                info = zipfile.ZipInfo(f"{roi.name}.roi")
                opened.writestr(info, roi.tobytes(), compress_type=zipfile.ZIP_DEFLATED)


def _roi(polygons: Sequence[Polygon]):
    """A traced outline, which can be edited; a composite one if it has holes or several pieces."""
    from roifile import ROI_TYPE, ImagejRoi

    if len(polygons) == 1 and not polygons[0].holes:
        roi = ImagejRoi.frompoints(polygons[0].outline)
        roi.roitype = ROI_TYPE.TRACED
        return roi
    roi = ImagejRoi()
    roi.roitype = ROI_TYPE.RECT
    path: list[float] = []
    for polygon in polygons:
        for ring in (polygon.outline, *polygon.holes):
            first, *others = ring.tolist()
            path += [_MOVE, *first]
            for corner in others:
                path += [_LINE, *corner]
            path.append(_CLOSE)
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)
    corners = np.concatenate([polygon.outline for polygon in polygons])
    (roi.left, roi.top), (roi.right, roi.bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return roi
