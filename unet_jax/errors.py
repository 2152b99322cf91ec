"""The errors that are for the user: one line each, printed without a traceback."""


class InputError(ValueError):
    """An input file, setting or checkpoint that cannot be used; nothing has been written.

    The command line programs exit with status 2.
    """


class RunFailed(RuntimeError):
    """A run that could not go on after its start; the last good checkpoint is intact.

    The command line programs exit with status 1.
    """


def one_line(error: object) -> str:
    """The text of an exception as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
