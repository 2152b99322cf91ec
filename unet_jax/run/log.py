"""The log of a training run: one JSON object a line, in `log.jsonl`.

A line is a training step, `{"step", "seconds", "loss", "gradient_norm", "learning_rate"}`, or a
validation, `{"step", "seconds", "validation": {...}}`; seconds count the time spent training.
"""

import json
import logging
from pathlib import Path
from typing import Any

from unet_jax.errors import InputError, one_line
from unet_jax.files.output import complete
from unet_jax.files.untrusted import read_small

logger = logging.getLogger("unet_jax")


class RunLog:
    """Appends to the log of a run, after dropping the lines of steps that will be done again."""

    def __init__(self, file: Path, step: int):
        """Opens the log of a run that goes on after `step`; 0 begins a new one."""
        self.rows = [row for row in read_log(file) if row["step"] <= step] if step else []
        self._file = file
        with complete(file) as unfinished:
            unfinished.write_text(_lines(self.rows), encoding="utf-8")

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows of JSON values."""
        self.rows += rows
        with self._file.open("a", encoding="utf-8") as file:
            file.write(_lines(rows))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log; none if there is no file.

    A last line cut off by a kill is left out, and others that are damaged, with a warning.

    Raises:
      InputError: it is no plain file of at most 64 MiB.
    """
    rows = []
    try:
        lines = read_small(file).decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)}).") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, LookupError, TypeError, RecursionError):
            if number < len(lines):
                logger.warning("%s: line %d is damaged and left out.", file, number)
    return rows


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)
