"""HTML pages in a single file: their charts and pictures are embedded as data addresses."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import imagecodecs
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from unet_jax.files.output import complete_text


def save_page(
    file: Path,
    package: str,
    template: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a page, which appears only when it is complete.

    Args:
      file: to write, .html.
      package: the package whose folder `templates` holds the template.
      template: its name.
      values: the values it is given.
      filters: its own functions, by name.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    page = environment.get_template(template).render(values)
    with complete_text(file) as opened:
        opened.write(page)


def svg(figure: Figure) -> str:
    """The data address of a chart."""
    buffer = io.BytesIO()
    # The same result gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "unet_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _address(buffer.getvalue(), "svg+xml")


def jpeg(pixels: np.ndarray) -> str:
    """The data address of grey values or colours, uint8 [H, W] or [H, W, 3]."""
    return _address(imagecodecs.jpeg_encode(np.ascontiguousarray(pixels), level=85), "jpeg")


def png(pixels: np.ndarray) -> str:
    """The data address of a picture with few colours, uint8 [H, W, 3]."""
    return _address(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=9), "png")


def _address(content: bytes | bytearray, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
