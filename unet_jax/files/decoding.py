"""What the decoding of TIFF and PNG files has in common: limits, refusals and notices."""

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unet_jax.errors import InputError, one_line

logger = logging.getLogger("unet_jax")

#: What one file may declare, in bytes of decoded pixels.
MAX_BYTES = 8 * 2**30
# LZW reaches about 1,400 : 1, times eight where a bit becomes a byte. A file that declares more,
# and is not small either way, was made to fill the memory.
_MAX_RATIO = 12_000
_ALWAYS_ALLOWED_BYTES = 64 * 2**20

#: What helps where channels are slices.
AS_PAGES = "save them as pages (in Fiji: Image > Hyperstacks > Re-order Hyperstack)"
_EXPECTED_OF_PALETTE = (
    "expected plain grey levels or RGB (in Fiji: Image > Lookup Tables > Grays if the colours stand"
    " for grey levels, otherwise Image > Type > RGB Color)"
)

_one_at_a_time = threading.Lock()
_decoders = 0  # threads that decode now
_silence = contextlib.ExitStack()


def refusal(path: Path, reason: str) -> InputError:
    """The error with which a file is refused."""
    return InputError(f"{path}: {reason}")


def notice(folder: Path, what: str) -> None:
    """Reports how the files of a folder were read: once, not for each file."""
    with _one_at_a_time:
        _notice(folder, what)


@functools.cache
def _notice(folder: Path, what: str) -> None:
    logger.warning("%s: %s", folder, what)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the decoders' warnings and log, from the first thread that decodes to the last."""
    global _decoders
    with _one_at_a_time:
        if _decoders == 0:
            _silence.enter_context(_silent())
        _decoders += 1
    try:
        yield
    finally:
        with _one_at_a_time:
            _decoders -= 1
            if _decoders == 0:
                _silence.close()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    def drop(record: logging.LogRecord) -> bool:
        return False

    logs = logging.getLogger("tifffile"), logging.getLogger("imagecodecs")
    for log in logs:
        log.addFilter(drop)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for log in logs:
            log.removeFilter(drop)


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into an InputError."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except Exception as error:  # damaged files raise some twenty kinds
        raise refusal(
            path, f"cannot be decoded because it is damaged ({one_line(error)})"
        ) from error


def check_declared(path: Path, declared: int) -> None:
    """Refuses a file that declares more decoded bytes than it can plausibly hold."""
    size = path.stat().st_size
    limit = min(MAX_BYTES, max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * size))
    if declared > limit:
        raise refusal(
            path,
            f"declares {declared:,} bytes of pixels, expected at most {limit:,} in a file of"
            f" {size:,} bytes",
        )


def check_palette(path: Path, colours: np.ndarray, is_mask: bool) -> None:
    """Refuses an image whose colours [n, RGB] are not a ramp from black to one of them."""
    if is_mask:
        notice(
            path.parent, "masks have a palette; the index of a colour is read as the mask's value"
        )
        return
    ramp = np.linspace(0, 1, len(colours))[:, None] * colours[-1:]
    if not colours.any() or (abs(colours - ramp) > 0.01 * colours.max()).any():
        raise refusal(path, f"holds palette colours, {_EXPECTED_OF_PALETTE}")
    notice(path.parent, "images coloured by a lookup table of one hue are read as grey")
