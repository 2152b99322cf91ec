"""What the command line programs share: flags, one-line errors and the exit status."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable

import jax
import pooch
from absl import flags
from tqdm.contrib.logging import logging_redirect_tqdm

from unet_jax.errors import InputError, RunFailed, one_line


def run(main: Callable[[], int]) -> None:
    """Parses the flags, calls `main` and exits the process with the status it returns.

    Compiled code is kept in the user's cache folder, or where JAX_COMPILATION_CACHE_DIR says.
    Bad flags and `InputError` exit with 2; `RunFailed`, errors of the operating system and lack of
    memory with 1; Ctrl-C with 130; each with one line on standard error.
    """
    logging.basicConfig(format="%(message)s", force=True)  # absl has its own format
    # A console may have no letter for what a file is called; it is no error to print it.
    with contextlib.suppress(AttributeError):  # of a notebook
        sys.stdout.reconfigure(errors="replace")
    if not jax.config.jax_compilation_cache_dir:
        # The second start takes a third of the first one's time.
        jax.config.update("jax_compilation_cache_dir", str(pooch.os_cache("unet_jax") / "compiled"))
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__, flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    try:
        try:
            rest = flags.FLAGS(sys.argv)[1:]
            for name in flags.FLAGS:
                # A --config that could not be loaded raises when it is first looked into.
                getattr(flags.FLAGS[name].value, "items", None)
        except flags.Error as error:
            raise InputError(one_line(error)) from error
        # Everything that a --config can raise: it is a Python file.
        except Exception as error:
            # ml_collections names what it misses in a KeyError, or in an AttributeError around one.
            for missing in (error, *error.args):
                if isinstance(missing, KeyError) and missing.args:
                    name, _, hint = str(missing.args[0]).partition("\n")
                    raise InputError(
                        f"--config has no value {name}, see docs/configuration.md. {hint}"
                    ) from error
            # The reason is the last line; the library puts a traceback before it.
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(f"--config: {one_line(reason[0])}") from error
        if rest:
            raise InputError(f"Not understood: {' '.join(rest)} (flags begin with --).")
        with logging_redirect_tqdm():  # a notice has a line of its own beside a progress bar
            status = main()
    except InputError as error:
        for problem in error.args:
            _say(problem)
        status = 2
    except RunFailed as error:
        for problem in error.args:
            _say(problem)
        status = 1
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        _say(one_line(error))
        status = 1
    except KeyboardInterrupt:
        _say("stopped")
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # its reader is gone, like `tee` after Ctrl-C; Windows calls it otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _say(message):
    print(f"{sys.argv[0]}: {' '.join(str(message).split())}", file=sys.stderr)
