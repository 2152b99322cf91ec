"""Runs programs of the project as Windows would, as far as Linux can tell, in one process.

    python tests/reliability/on_windows.py train.py --config=... then eval.py --checkpoint=...

Calls that only Unix has are gone; a file that is open or mapped is neither renamed nor removed nor
replaced; no folder is opened; names hold none of the characters that Windows reserves; and a text
file whose encoding is left to the system is an error.
"""

import asyncio  # noqa: F401
import os
import re
import runpy
import shutil
import signal
import sys
import warnings
from pathlib import Path

# These, and asyncio, have branches of their own for Windows, which Linux cannot try.
import filelock  # noqa: F401
import psutil  # noqa: F401
from absl import flags

ONLY_UNIX = {
    os: "fork getuid posix_fallocate sched_getaffinity sysconf SEEK_HOLE SEEK_DATA",
    signal: "SIGALRM SIGHUP SIGKILL SIGUSR1 alarm pthread_kill",
}
ONLY_UNIX_MODULES = ["fcntl", "grp", "pwd", "resource", "termios"]
RESERVED = r'[<>:"|?*\\\0-\x1f]|[. ](/|$)'


def in_use(path):
    """Whether this process has opened or mapped the file, or one in the folder."""
    path = os.path.realpath(path)
    files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    files += re.findall(r"^(?:\S+ +){5}(/.*)$", maps, re.MULTILINE)
    return any(f == path or f.startswith(f"{path}/") for f in files if os.path.isfile(f))


def refuse(event, arguments):
    """An audit hook: Python asks it before it opens, renames or removes a file."""
    if event in ("os.rename", "os.remove"):
        for path in arguments[: 2 if event == "os.rename" else 1]:
            if in_use(path):
                raise PermissionError(13, "The file is open or mapped", path)
    elif event == "open" and isinstance(arguments[0], str):
        path, mode, bits = arguments
        unnamed = bits & os.O_TMPFILE == os.O_TMPFILE  # a temporary file in the folder
        if mode is None and os.path.isdir(path) and not unnamed:  # by `os.open`
            raise PermissionError(13, "A folder cannot be opened", path)
        if bits & os.O_CREAT and re.search(RESERVED, path):
            raise OSError(22, "A character of the name is reserved", path)


if __name__ == "__main__":
    for module, names in ONLY_UNIX.items():
        for name in names.split():
            delattr(module, name)
    sys.modules |= dict.fromkeys(ONLY_UNIX_MODULES)
    os.process_cpu_count = os.cpu_count  # of Python 3.13, which asks for the affinity
    shutil._use_fd_functions = False  # as on Windows: no folder is opened
    warnings.filterwarnings("ignore", category=EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"unet_jax")
    sys.addaudithook(refuse)
    sys.path[0] = os.getcwd()
    before, commands = set(flags.FLAGS), [[]]
    for argument in sys.argv[1:]:
        commands.append([]) if argument == "then" else commands[-1].append(argument)
    for sys.argv in commands:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
        sys.modules.pop(f"unet_jax.programs.{Path(sys.argv[0]).stem}", None)
