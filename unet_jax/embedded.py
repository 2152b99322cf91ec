"""Charts and pictures as addresses that hold them, so that a page needs no other file."""

import base64
import io

import imagecodecs
import matplotlib
import numpy as np
from matplotlib.figure import Figure


def svg(figure: Figure) -> str:
    """Of a chart."""
    buffer = io.BytesIO()
    # The same result gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "unet_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return _address(buffer.getvalue(), "svg+xml")


def jpeg(pixels: np.ndarray) -> str:
    """Of grey values or colours, uint8 [H, W] or [H, W, 3]."""
    return _address(imagecodecs.jpeg_encode(np.ascontiguousarray(pixels), level=85), "jpeg")


def png(pixels: np.ndarray) -> str:
    """Of few colours, uint8 [H, W, 3]."""
    return _address(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=9), "png")


def _address(content: bytes | bytearray, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
