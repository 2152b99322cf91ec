"""What the command line programs share: flags, one-line errors and the exit status."""

import logging
import sys
from collections.abc import Callable

from absl import flags

from unet_jax.errors import InputError, RunFailed


def run(main: Callable[[], int]) -> None:
    """Parses the flags, calls `main` and exits the process with the status it returns.

    Bad flags and `InputError` exit with 2, `RunFailed` and errors of the operating system with 1,
    Ctrl-C with 130, each with one line on standard error.
    """
    logging.basicConfig(format="%(message)s")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        try:
            rest = flags.FLAGS(sys.argv)[1:]
            for name in flags.FLAGS:
                # A --config that could not be loaded raises when it is first looked into.
                getattr(flags.FLAGS[name].value, "items", None)
        # Everything that a --config can raise: it is a Python file.
        except Exception as error:
            raise InputError(_one_line(error)) from error
        if rest:
            raise InputError(f"Not understood: {' '.join(rest)} (flags begin with --).")
        status = main()
    except InputError as error:
        _say(error)
        status = 2
    except (RunFailed, OSError) as error:
        _say(error)
        status = 1
    except KeyboardInterrupt:
        _say("stopped")
        status = 130
    sys.exit(status)


def _say(error):
    print(f"{sys.argv[0]}: {_one_line(error)}", file=sys.stderr)


def _one_line(error):
    # A KeyError shows its text quoted.
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__
