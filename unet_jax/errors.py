"""The errors that are for the user: one line each, printed without a traceback."""


class InputError(ValueError):
    """An input file, setting or checkpoint that cannot be used; nothing has been written.

    The command line programs exit with status 2.
    """


class RunFailed(RuntimeError):
    """A run that could not go on after its start; the last good checkpoint is intact.

    The command line programs exit with status 1.
    """
