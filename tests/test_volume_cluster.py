import contextlib
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from tests.test_predict_volume import SETTINGS, a_model, a_volume, snapshot
from unet_jax.errors import InputError
from unet_jax.volumes import blocks
from unet_jax.volumes.predict_volume import predict_volume

distributed = pytest.importorskip("distributed", reason="workers of Dask: distributed")
cluster = pytest.importorskip("unet_jax.volumes.cluster")
OPTIONS = {"settings": SETTINGS, "block_side": 64, "averaging": "none"}


def contents(folder):
    """But for the group's name."""
    found = {str(name): content for name, (content, _) in snapshot(folder).items()}
    found.pop("zarr.json")
    return found


def test_workers_that_die_change_nothing(tmp_path):
    a_volume(tmp_path / "in", (2, 300, 420))
    predict_volume(a_model(), tmp_path / "in", tmp_path / "loop", **OPTIONS)
    first_seen, stop = {}, threading.Event()
    place = tmp_path / "out" / "labels" / "classes" / "0" / "c"

    def watch(pids):
        """Kills a worker as soon as some blocks are there, and later another one."""
        while not stop.is_set():
            there = {f: f.stat().st_mtime_ns for f in place.rglob("*") if f.name.isdigit()}
            for file in [f for f in there if f.is_file()]:
                first_seen.setdefault(file, there[file])
            if pids and len(first_seen) > 12 // len(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pids.pop(), signal.SIGKILL)
            time.sleep(0.01)

    with cluster.local_workers(2) as client:
        pids = list(client.run(os.getpid).values())
        watching = threading.Thread(target=watch, args=(pids,))
        watching.start()
        result = predict_volume(
            a_model(), tmp_path / "in", tmp_path / "out", client=client, **OPTIONS
        )
        stop.set()
        watching.join()
    assert (result.done, result.blocks, result.problems) == (70, 70, ())
    assert not pids and len(first_seen) > 50
    assert {file: file.stat().st_mtime_ns for file in first_seen} == first_seen
    assert contents(tmp_path / "out") == contents(tmp_path / "loop")


def test_a_block_that_kills_its_workers_is_told(tmp_path, monkeypatch):
    a_volume(tmp_path / "in", (1, 100, 100))
    monkeypatch.setattr(cluster, "_TRIES", 2)
    with cluster.local_workers(1) as client:
        job = blocks.Job("in", "out", a_model(), ("mask",), False, "none", SETTINGS, 64, 64, {})
        job.made_with["versions"] = cluster.common_environment(client)
        job = replace(job, source=str(tmp_path / "in"), output=str(tmp_path / "in"))
        items = [blocks.Block(0, 0, 0, 0), blocks.Block(0, 0, 1, 1)]
        with cluster.on_workers(client, job) as do:
            # One by one: with so few tries, a neighbour of the one that dies is given up, too.
            problems = {i: problem for i in items for _, _, problem in do(dies_at_the_second, [i])}
    assert problems[items[0]] is None
    says = "needs more memory or smaller blocks; its workers died 2 times"
    assert problems[items[1]].endswith(f"t 0, z 0, rows 64 to 99, columns 64 to 99: {says}")


def dies_at_the_second(job, block):
    if block.row:
        os._exit(1)


def test_a_scheduler_that_does_not_answer_or_has_no_workers_is_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_PATIENCE", "1s")
        for address in ("tcp://127.0.0.1:1", "nonsense://a"):
            with pytest.raises(InputError, match=f"{address}: no scheduler answers"):
                with cluster.workers_of(address):
                    pass
    options = {"n_workers": 0, "host": "127.0.0.1", "dashboard_address": None}
    with distributed.LocalCluster(**options) as empty:
        with pytest.raises(InputError, match="has no workers yet"):
            with cluster.workers_of(empty.scheduler_address) as client:
                cluster.common_environment(client)


def test_workers_of_different_versions_are_refused(tmp_path):
    class Client:
        def run(self, function):
            return {"a": function(), "b": function() | {"jax": "0.1"}}

    with pytest.raises(InputError, match=r"The workers differ: jax is .* on a and 0\.1 on b"):
        cluster.common_environment(Client())
