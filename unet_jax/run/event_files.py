"""The log of a run for TensorBoard: loss, validation and its pictures, as event files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs

from unet_jax.errors import InputError


def check_tensorboard() -> None:
    """Raises InputError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tensorboard needs tensorboardX ({error}): pip install 'unet-jax[tensorboard]'"
        ) from error


class EventFiles:
    """Event files in a folder; whenever the run continues, its whole log is written again."""

    def __init__(self, folder: Path):
        """Replaces any event files in the folder.

        Raises:
          InputError: the folder cannot be written to.
        """
        from tensorboardX import SummaryWriter

        try:
            for former in folder.glob("events.out.tfevents.*"):
                former.unlink()
            self._writer = SummaryWriter(str(folder))
        except OSError as error:
            raise InputError(f"{folder}: cannot be written to ({error.strerror}).") from error
        self._written = 0

    def add(self, rows: Sequence[dict[str, Any]], picture: Path) -> None:
        """Writes the new rows of a log, and the picture of the last one, a PNG file."""
        for row in rows[self._written :]:
            kind, values = "training", row
            if "validation" in row:
                kind, values = "validation", row["validation"]
            for name in values.keys() - {"step", "seconds"}:
                self._writer.add_scalar(f"{kind}/{name}", values[name], row["step"])
        self._written = len(rows)
        pixels = imagecodecs.imread(picture)
        self._writer.add_image("validation", pixels[..., :3], rows[-1]["step"], dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        self._writer.close()
