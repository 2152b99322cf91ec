"""The one exception that a user's input can cause."""


class InputError(ValueError):
    """An input file, setting or checkpoint that cannot be used; its text is one line for the user.

    Raised before anything is written. The command line programs print the text and exit with
    status 2.
    """
