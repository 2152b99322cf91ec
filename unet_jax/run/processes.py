"""Several processes that train one network, on devices of one or several machines.

All read the same files and do the same steps; only the first one writes. What a process learns
on its own, such as a signal or a file that it cannot read, is shared with the others at a fixed
place.
"""

import atexit
import contextlib
import ctypes
import hashlib
import json
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unet_jax.errors import InputError, RunFailed, one_line

logger = logging.getLogger("unet_jax")

_ADDRESS = "HOST:PORT,COUNT,INDEX"
_ENDED = (
    "Another process has ended, so this one ends too; start the same command again in all "
    "processes to continue after the last step saved."
)
_NOT_FOUND = (
    "--distributed: the processes did not find each other within five minutes. Is each of them "
    "running, and is the address that of the first one?"
)


def writes() -> bool:
    """Whether this process is the one that writes; true where there is only one."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(address: str) -> Iterator[None]:
    """Makes this one of several processes; to be entered before anything is computed.

    If the block ends with an error, the process ends once it is reported, and then the others.

    Args:
      address: "HOST:PORT,COUNT,INDEX": where the first process can be reached, how many there are
        and which one this is, from 0. Empty if Slurm or Open MPI provide it.

    Raises:
      InputError: the address is not valid, or is empty without Slurm or Open MPI.
      RunFailed: another process has ended.
    """
    values = _parsed(address)
    stderr = os.dup(2)
    _explain_abort(_NOT_FOUND, 2, stderr)
    if jax.config.values.get("jax_cpu_collectives_implementation") == "none":  # JAX 0.5
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # for the lines and stack that JAX writes if it fails
        jax.distributed.initialize(**values)
    except (ValueError, RuntimeError) as error:
        remedy = f"give --distributed={_ADDRESS}, because neither Slurm nor Open MPI provides it"
        reason = one_line(error) if address else remedy
        raise InputError(f"--distributed: {reason}.") from error
    finally:
        os.dup2(stderr, 2)
    signal.signal(signal.SIGTERM, on_sigterm)  # which JAX takes for itself
    if not writes():
        logger.setLevel(logging.ERROR)  # the first one's notices are enough
    _explain_abort(_ENDED, 1, stderr)
    try:
        yield
    except BaseException as error:
        # At its exit JAX would wait for the others, which wait for this process.
        atexit.register(_leave, 2 if isinstance(error, InputError) else 1)
        told = isinstance(error, InputError | RunFailed)
        if not told and re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise RunFailed(_ENDED) from error
        raise


def _leave(status: int) -> None:
    if writes():
        # Without it the others end at once, with no time to tell an error that all have.
        time.sleep(3)
    os._exit(status)


def _parsed(address: str) -> dict[str, Any]:
    if not address:
        return {}
    parts = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", address)
    if not parts:
        raise InputError(f"--distributed must be {_ADDRESS}, not {address}.")
    place, count, index = parts[1], int(parts[2]), int(parts[3])
    if index >= count:
        raise InputError(
            f"--distributed={address}: the index must be from 0 to {count - 1}, not {index}."
        )
    if index == 0:
        _check_port(int(place.rpartition(":")[2]))
    return {"coordinator_address": place, "num_processes": count, "process_id": index}


def _check_port(port: int) -> None:
    """InputError if the port is in use, in which case JAX would crash."""
    try:
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a kill, at once
            trial.bind(("", port))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--distributed: port {port} cannot be used ({one_line(error)})."
        ) from None


def _explain_abort(line: str, status: int, stderr: int) -> None:
    """Prints a last line when JAX, in a C++ thread, aborts a process that has lost the others."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def explain(_):
        os.dup2(stderr, 2)
        logger.error("%s", line)
        os._exit(status)

    _handlers.append(explain)
    ctypes.pythonapi.PyOS_setsig(signal.SIGABRT, explain)


_handlers: list[Any] = []  # which C calls, so that they must stay


@contextlib.contextmanager
def agreed() -> Iterator[dict[str, Any]]:
    """A block that an InputError in one process ends in all of them.

    Yields:
      A dict for what must be the same in all at the end: texts or trees of arrays by their names.

    Raises:
      InputError: that of this or another process, or something is not the same in all.
    """
    values: dict[str, Any] = {}
    if jax.process_count() == 1:
        yield values
        return
    own = None
    try:
        yield values
    except InputError as error:
        own = error
    digests = {name: _sha256(value) for name, value in values.items()}
    told = _of_all({"problems": own.args if own else (), "digests": digests})
    if own:
        raise own
    problems = [f"Process {i}: {p}" for i, other in enumerate(told) for p in other["problems"]]
    if problems:
        raise InputError(*problems)
    for i, other in enumerate(told):
        for name, digest in told[0]["digests"].items():
            if other["digests"][name] != digest:
                raise InputError(
                    f"Process {i} differs from process 0 in its {name}; start all with the same "
                    "command and the same files."
                )


def _of_all(value: Any) -> list[Any]:
    """The JSON values that the processes give, in their order."""
    text = json.dumps(value).encode()
    size = process_allgather(np.int32(len(text))).max()
    texts = process_allgather(np.frombuffer(text.ljust(size), np.uint8))
    return [json.loads(row.tobytes()) for row in texts]


def _sha256(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Largest:
    """The largest number that any process has given, in all processes at the same call."""

    def __init__(self):
        """None has been given yet."""
        self._given: jax.Array | int = 0

    def of_call_before(self, number: int) -> int:
        """The largest number of the previous call, which a device has computed in the meantime.

        So nothing waits for it. In a single process, that of this call.
        """
        given, self._given = self._given, _largest(number)
        return int(given if jax.process_count() > 1 else number)


def largest(number: int) -> int:
    """The largest number of all processes; waits for them."""
    return int(_largest(number))


def _largest(number: int) -> jax.Array | int:
    if jax.process_count() == 1:
        return number
    mesh = Mesh(np.array(jax.devices()), "all")
    sharding = NamedSharding(mesh, PartitionSpec("all"))
    numbers = jax.make_array_from_callback(
        (mesh.size,), sharding, lambda _: np.full(1, number, np.int32)
    )
    return _max(numbers).addressable_data(0)


_max = jax.jit(jnp.max)
