"""The work on a volume by the workers of Dask, on this machine or on a cluster."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import dask
import jax
from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    WorkerPlugin,
    as_completed,
    get_worker,
)
from distributed.comm import CommClosedError

from unet_jax.errors import InputError, RunFailed, one_line
from unet_jax.hardware import cpu_cores
from unet_jax.volumes.blocks import MORE_MEMORY, Item, Job, attempt, environment, place

# A worker's death counts against every task that it held, so that the scheduler gives some up which
# are not to blame; they are submitted again, so many times each.
_TRIES = 10
# Blocks that a worker holds, so that it need not wait for the next.
_BLOCKS_HELD = 2
_PATIENCE = "20s"


@contextlib.contextmanager
def local_workers(count: int) -> Iterator[Client]:
    """So many processes of this machine, which share its cores; their ports are on loopback."""
    variables = {
        "NPROC": str(max(cpu_cores() // count, 1)),  # of threads that JAX computes with
        "DASK_LOGGING__DISTRIBUTED": "error",
    }
    if compiled := jax.config.values["jax_compilation_cache_dir"]:
        variables["JAX_COMPILATION_CACHE_DIR"] = compiled  # by one of them for all
    options: dict[str, Any] = {
        f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in variables.items()
    }
    options["distributed.scheduler.allowed-failures"] = 0  # a death is told at once
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with (
        dask.config.set(options),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def workers_of(scheduler: str) -> Iterator[Client]:
    """The workers of a scheduler that runs already, such as tcp://host:8786.

    Raises:
      InputError: it does not answer, or has no workers.
    """
    try:
        client = Client(scheduler, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise InputError(f"{scheduler}: no scheduler answers ({one_line(error)}).") from error
    with client:
        if not client.nthreads():
            raise InputError(f"{scheduler}: has no workers yet; start some.")
        yield client


def common_environment(client: Client) -> dict[str, str]:
    """What all workers compute with; InputError if they differ."""
    found = client.run(environment)
    first, *others = found.items()
    for worker, there in others:
        for key, value in there.items():
            if value != first[1][key]:
                raise InputError(
                    f"The workers differ: {key} is {first[1][key]} on {first[0]} and {value} on "
                    f"{worker}; all must be of one kind, for the same bits."
                )
    return first[1]


@contextlib.contextmanager
def on_workers(client: Client, job: Job) -> Iterator[Callable[..., Iterator]]:
    """Gives the function that does a stage's items in any order, as `in_turn` does in order."""
    plugin = _JobPlugin(dataclasses.replace(job))  # without what this process has opened
    client.register_plugin(plugin, name=plugin.name)  # a worker that comes later gets it too
    try:
        yield functools.partial(_run, client, plugin.name, job)
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            client.unregister_worker_plugin(plugin.name)


class _JobPlugin(WorkerPlugin):
    """The job, kept by each worker."""

    def __init__(self, job: Job):
        self.job = job
        self.name = f"unet_jax-{uuid.uuid4().hex}"


def _do(name: str, function: Callable[[Job, Item], None], item: Item) -> str | None:
    worker = get_worker()
    job = cast(_JobPlugin, worker.plugins[name]).job
    if environment() != job.made_with["versions"]:
        raise RunFailed(
            f"The worker {worker.address} computes with {environment()}, the others with "
            f"{job.made_with['versions']}."
        )
    return attempt(function, job, item)


def _run(
    client: Client,
    name: str,
    job: Job,
    function: Callable[[Job, Item], None],
    items: Iterable[Item],
) -> Iterator[tuple[Item, str | None]]:
    """The items as they are done, each with what is wrong with it."""
    items = iter(items)
    asked: dict[Any, Item] = {}
    tries: dict[Item, int] = {}

    def submit(item: Item) -> Future:
        # Another task if it is the same item again, whose dead one the scheduler remembers.
        future = client.submit(_do, name, function, item, pure=False)
        asked[future.key] = item
        return future

    # Few at a time, or the scheduler's memory and time would grow with the volume.
    window = _BLOCKS_HELD * max(sum(client.nthreads().values()), 1)
    done = as_completed([submit(item) for item in itertools.islice(items, window)])
    for future in done:
        item = asked.pop(future.key)
        try:
            problem = future.result()
        except KilledWorker:
            tries[item] = tries.get(item, 0) + 1
            if tries[item] < _TRIES:
                done.add(submit(item))
                continue
            problem = f"{place(job, item)}: {MORE_MEMORY}; {_TRIES} workers died of it"
        except (CancelledError, CommClosedError) as error:
            raise RunFailed(
                "The scheduler is gone; the same command goes on where it was."
            ) from error
        future.release()
        for following in itertools.islice(items, 1):
            done.add(submit(following))
        yield item, problem
