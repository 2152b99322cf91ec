"""The errors meant for the user: a line for each problem, printed without a traceback."""

import contextlib
from collections.abc import Iterator, Sequence


class InputError(ValueError):
    """An input file, setting or checkpoint that cannot be used; nothing has been written.

    Each argument is one problem, in one line. The command line programs exit with status 2.
    """

    def __init__(self, *problems: str):
        """Characters that could control a terminal are removed: file names may hold anything."""
        super().__init__(*(printable(" ".join(problem.splitlines())) for problem in problems))

    def __str__(self):
        """All problems."""
        return "; ".join(self.args)


class RunFailed(RuntimeError):
    """A run that could not continue after its start; the last good checkpoint is intact.

    Each argument is one problem, in one line. The command line programs exit with status 1.
    """


class Problems:
    """Collects what is wrong with an input, so that everything is reported at once."""

    def __init__(self):
        """Begins without problems."""
        self._lines = []

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """Notes an InputError raised in the block, which ends at that point."""
        try:
            yield
        except InputError as error:
            self._lines += error.args

    def raise_all(self) -> None:
        """Raises one InputError with all problems noted, if there are any."""
        if self._lines:
            raise InputError(*self._lines)


def one_line(error: object) -> str:
    """The text of an exception as one line of at most 300 printable characters."""
    return printable(" ".join(str(error).split())[:300] or type(error).__name__)


def printable(text: str) -> str:
    """The text without characters that could control a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def listed(values: Sequence, count: int) -> str:
    """The first values, separated by commas."""
    return ", ".join(map(str, values[:count])) + (", ..." if len(values) > count else "")
