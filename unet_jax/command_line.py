"""How a program starts and ends: its flags, what is printed, and the exit status."""

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from absl import flags
from tqdm import tqdm

from unet_jax.errors import InputError, RunFailed, one_line, printable


class Outcome(NamedTuple):
    """What a program prints at its end.

    Attributes:
      text: for standard output; may have several lines.
      problems: what is missing from the result, one line each on standard error.
      status: the exit status; by default 1 if there are problems.
    """

    text: str
    problems: Sequence[str] = ()
    status: int = 0


def command() -> str:
    """The command that this process was started with, as a user would type it."""
    program, *arguments = sys.argv
    return f"{'python ' * program.endswith('.py')}{program} {shlex.join(arguments)}".rstrip()


def start(name: str) -> None:
    """Runs the program of that name in `unet_jax/programs` with the flags given, see `run`."""
    program = importlib.import_module(f"unet_jax.programs.{name}")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(program.__doc__, flags.FLAGS.module_help(program.__name__), sep="\n")
        sys.exit(0)
    run(program.main)


def run(main: Callable[[], Outcome]) -> None:
    """Parses the flags, calls `main`, prints its outcome and exits the process.

    The library's notices go to standard output, its warnings to standard error. Compiled code is
    kept in the user's cache folder, or in the folder that JAX_COMPILATION_CACHE_DIR names.
    Bad flags and `InputError` exit with 2; `RunFailed`, operating system errors and lack of
    memory with 1; Ctrl-C with 130; each with one line on standard error.
    """
    import jax  # takes a second, which --help does not wait for

    logging.basicConfig(handlers=[_Console()], force=True)  # absl has its own
    logging.getLogger("unet_jax").setLevel(logging.INFO)
    # A console may have no letter for what a file is called; it is no error to print it.
    with contextlib.suppress(AttributeError):  # of a notebook
        cast(io.TextIOWrapper, sys.stdout).reconfigure(errors="replace")
    keep_compiled_code()
    try:
        _parse_flags()
        text, problems, status = main()
        # That nobody reads it any more, like `tee` after Ctrl-C, is no error.
        with contextlib.suppress(OSError):
            print(text, end="\n" if text else "")
        for problem in problems:
            say(problem)
        status = status or int(bool(problems))
    except (InputError, RunFailed) as error:
        for problem in error.args:
            say(problem)
        status = 2 if isinstance(error, InputError) else 1
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        say(one_line(error))
        status = 1
    except KeyboardInterrupt:
        say("stopped")
        status = 130
    try:
        sys.stdout.flush()
    except OSError:  # its reader is gone, like `tee` after Ctrl-C; Windows calls it otherwise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def keep_compiled_code() -> None:
    """Has JAX keep what it compiles for later processes, see `run`."""
    import jax
    import pooch

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(pooch.os_cache("unet_jax") / "compiled"))
    # The fifty small functions of a start take as long as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _parse_flags() -> None:
    """Raises InputError for flags, or a --config, that cannot be understood."""
    try:
        # What comes with unet_jax is named; the library that reads a configuration wants its file.
        arguments = "\0".join(sys.argv)
        arguments = re.sub(r"(\0--?config[=\0])(\w+)(?=\0|$)", _with_file, arguments)
        rest = flags.FLAGS(arguments.split("\0"))[1:]
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


def _with_file(option: re.Match) -> str:
    from unet_jax.configuration import configuration_file

    return f"{option[1]}{configuration_file(option[2])}"


class _Console(logging.Handler):
    """Prints a line for each notice, even while a progress bar is shown."""

    def emit(self, record):
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with contextlib.suppress(OSError):  # its reader is gone
            tqdm.write(printable(record.getMessage()), file=stream)


def say(message: object) -> None:
    """Prints one line on standard error, after the program's name."""
    print(printable(f"{sys.argv[0]}: {' '.join(str(message).split())}"), file=sys.stderr)
