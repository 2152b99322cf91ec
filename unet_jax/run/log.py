"""The log of a training run: one JSON object per line, in `log.jsonl`.

A line is a training step, `{"step", "seconds", "loss", "gradient_norm", "learning_rate"}`, or a
validation, `{"step", "seconds", "validation": {...}}`; seconds count the time spent training.
"""

import itertools
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from unet_jax.errors import InputError, one_line
from unet_jax.files.output import complete
from unet_jax.files.untrusted import read_small
from unet_jax.run.guard import is_finite
from unet_jax.training_loop import Steps

logger = logging.getLogger("unet_jax")

# Of a log, which takes 20 times as much memory: some 1.8 million steps.
_MAX_BYTES = 2**28
# Steps whose metrics are fetched at a time.
_FETCH_EVERY = 10


class RunLog:
    """Appends to the log of a run, after dropping the lines of steps that will be done again.

    Attributes:
      rows: those of all steps that have been fetched, and of the validations.
    """

    def __init__(self, file: Path, step: int, *, writes: bool = True):
        """Opens the log of a run that continues after `step`; 0 begins a new one.

        If `writes` is false, rows are only kept in memory.
        """
        self.rows = [row for row in read_log(file) if row["step"] <= step] if step else []
        self._file, self._writes = file, writes
        self._pending: list[Steps] = []
        self._began = time.perf_counter() - (self.rows[-1].get("seconds", 0) if self.rows else 0)
        if writes:
            with complete(file) as unfinished:
                unfinished.write_text(_lines(self.rows), encoding="utf-8")

    @property
    def seconds(self) -> float:
        """Time spent training, by this process and those before it."""
        return time.perf_counter() - self._began

    def add(self, steps: Steps) -> bool:
        """Notes steps whose metrics are still on the device; returns if it is time to `fetch`."""
        steps.values.copy_to_host_async()
        self._pending.append(steps)
        return sum(len(pending.numbers) for pending in self._pending) > _FETCH_EVERY

    def fetch(self, *, wait: bool) -> dict[str, Any] | None:
        """Writes the rows of the steps noted, up to the first that is not finite.

        Without `wait`, the newest ones stay noted, so that the device, which is busy with them,
        does not wait for the host.

        Returns:
          The row of the first step that is not finite, None if all are.
        """
        count = len(self._pending) - (not wait)
        ready, self._pending = self._pending[:count], self._pending[count:]
        numbered = [pair for s in ready for pair in zip(s.numbers, s.metrics(), strict=True)]
        seconds = round(self.seconds, 1)
        rows = [{"step": step, "seconds": seconds} | metrics for step, metrics in numbered]
        finite = list(itertools.takewhile(is_finite, rows))
        self.write(finite)
        return rows[len(finite)] if len(finite) < len(rows) else None

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows of JSON values."""
        self.rows += rows
        if self._writes:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_lines(rows))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log; none if there is no file.

    A last line cut off by a kill is left out; so are other damaged lines, with a warning.

    Raises:
      InputError: it is not a regular file of at most 256 MiB.
    """
    rows = []
    try:
        lines = read_small(file, _MAX_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)}).") from error
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_read_row(line))
        except Exception:  # made-up values raise many kinds
            if number < len(lines):
                logger.warning("%s: line %d is damaged and left out.", file, number)
    return rows


def _read_row(line: str) -> dict[str, Any]:
    """Raises many kinds of exceptions for a line that no run has written."""
    row = json.loads(line)
    validation = row.get("validation", {"loss": 0.0})
    numbers = (row | {"validation": validation["loss"]}).values()
    for number in (*numbers, *validation.values()):
        math.isfinite(number)
    return row | {"step": int(row["step"])}


def _lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)
