"""The work on a volume with Dask workers, on this machine or on a cluster."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, cast

import dask
import jax
from distributed import (
    Client,
    KilledWorker,
    LocalCluster,
    WorkerPlugin,
    as_completed,
    get_worker,
)
from distributed.comm import CommClosedError

from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.files.zarr_store import read_object
from unet_jax.hardware import cpu_cores
from unet_jax.volumes.blocks import MORE_MEMORY, Item, Job, attempt, environment, place

# A worker's death counts against every task that it held, so that the scheduler gives some up which
# are not to blame; they are submitted again, so many times each.
_TRIES = 10
# Blocks that a worker holds, so that it need not wait for the next.
_BLOCKS_HELD = 2
_PATIENCE = "20s"
_LOOK_EVERY = 10  # seconds


@contextlib.contextmanager
def local_workers(count: int) -> Iterator[Client]:
    """`count` processes on this machine, which share its cores; their ports are on loopback.

    Raises:
      InputError: there is an accelerator, which each process would claim for itself.
    """
    if jax.default_backend() != "cpu":
        raise InputError(
            "--workers share the cores of a CPU and are not for accelerators; start a Dask worker "
            "for each accelerator, and give the address of its scheduler as --scheduler, see "
            "docs/large.md."
        )
    variables = {
        "NPROC": str(max(cpu_cores() // count, 1)),  # of threads that JAX computes with
        "DASK_LOGGING__DISTRIBUTED": "critical",
    }
    if compiled := jax.config.values["jax_compilation_cache_dir"]:
        variables["JAX_COMPILATION_CACHE_DIR"] = compiled  # by one of them for all
    options: dict[str, Any] = {
        f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in variables.items()
    }
    options["distributed.scheduler.allowed-failures"] = 0  # a death is told at once
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        with dask.config.set(options), _no_interrupts():
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            stack.enter_context(cluster)
        yield stack.enter_context(Client(cluster))


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that are started in the block leave Ctrl-C to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def workers_of(scheduler: str) -> Iterator[Client]:
    """The workers of a scheduler that is already running, such as tcp://host:8786.

    Raises:
      InputError: it does not answer.
    """
    try:
        client = Client(scheduler, timeout=_PATIENCE)
    except (OSError, TypeError, ValueError) as error:  # TypeError: TLS without certificates
        raise InputError(f"{scheduler}: no scheduler answers ({one_line(error)}).") from error
    with client:
        yield client


def common_environment(client: Client) -> dict[str, str]:
    """The environment of all workers; InputError if they differ, or if there are none."""
    found = client.run(environment)
    if not found:
        raise InputError("The scheduler has no workers yet; start some.")
    first, *others = found.items()
    for worker, there in others:
        for key, value in there.items():
            if value != first[1][key]:
                raise InputError(
                    f"The workers differ: {key} is {first[1][key]} on {first[0]} and {value} on "
                    f"{worker}; all must be the same to give the same bits."
                )
    return first[1]


@contextlib.contextmanager
def on_workers(client: Client, job: Job) -> Iterator[Callable[..., Iterator]]:
    """Gives a function that runs a stage's function on all items and yields them as they finish.

    Each item comes with what `attempt` returns.
    """
    plugin = _JobPlugin(dataclasses.replace(job))  # without what this process has opened
    client.register_plugin(plugin, name=plugin.name)  # a worker that comes later gets it too
    try:
        yield functools.partial(_run, client, plugin.name, job)
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            client.unregister_worker_plugin(plugin.name)


class _JobPlugin(WorkerPlugin):
    """Keeps the job on each worker."""

    def __init__(self, job: Job):
        self.job = job
        self.name = f"unet_jax-{uuid.uuid4().hex}"


def _do(name: str, function: Callable[[Job, Item], Any], item: Item) -> tuple[Any, str | None]:
    return attempt(function, _checked_job(name), item)


@functools.lru_cache(maxsize=2)
def _checked_job(name: str) -> Job:
    """The job of this worker, after checking that the worker is like the others."""
    worker = get_worker()
    job = cast(_JobPlugin, worker.plugins[name]).job
    if environment() != job.made_with["versions"]:
        raise RunFailed(
            f"The worker {worker.address} has {environment()}, but the others have "
            f"{job.made_with['versions']}."
        )
    if read_object(job.output, "zarr.json") is None:
        raise RunFailed(
            f"The worker {worker.address} does not see {job.output}; all need the same disk."
        )
    return job


def _run(
    client: Client,
    name: str,
    job: Job,
    function: Callable[[Job, Item], Any],
    items: Iterable[Item],
) -> Iterator[tuple[Item, Any, str | None]]:
    """See `on_workers`."""
    items = iter(items)
    asked: dict[Any, Item] = {}
    tries: dict[Item, int] = {}
    done = as_completed([])
    window, looked = 0, -math.inf

    def submit(item: Item) -> None:
        # Another task if it is the same item again, whose dead one the scheduler remembers.
        future = client.submit(_do, name, function, item, pure=False)
        asked[future.key] = item
        done.add(future)

    while True:
        if time.monotonic() > looked + _LOOK_EVERY:  # workers come and go
            window, looked = _BLOCKS_HELD * sum(client.nthreads().values()), time.monotonic()
        # Few at a time, or the scheduler's memory and time would grow with the volume.
        for item in itertools.islice(items, max(window - len(asked), not asked)):
            submit(item)
        if not asked:
            return
        future = next(done)
        item = asked.pop(future.key)
        try:
            result, problem = future.result()
        except KilledWorker:
            tries[item] = tries.get(item, 0) + 1
            if tries[item] < _TRIES:
                submit(item)
                continue
            problem = f"{place(job, item)}: {MORE_MEMORY}; its workers died {_TRIES} times"
            result = None
        except (CancelledError, CommClosedError) as error:
            raise RunFailed(
                "The scheduler is gone; run the same command again to continue."
            ) from error
        future.release()
        yield item, result, problem
