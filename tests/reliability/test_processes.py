"""Several processes that train one network: they end alike, and nothing is written twice."""

import os
import re
import signal
import socket
import time
from contextlib import nullcontext

import jax
import numpy as np
import pytest
from filelock import FileLock

from configs import demo
from tests.reliability.conftest import TINY, rows
from unet_jax import checkpoint, load
from unet_jax.errors import InputError
from unet_jax.run import processes
from unet_jax.run.fit import Run, fit
from unet_jax.run.processes import Largest, agreed, joined, largest, writes

ONE_DEVICE_EACH = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "PYTHONUNBUFFERED": "1",
}
ENDED = "Another process has ended, so this one ends too; start the same command again in all"


@pytest.fixture
def config(tiny_config):
    """Of enough steps to be stopped on the way."""
    tiny_config.train.update({"batch_size": 2, "steps": 100, "validate_every": 25})
    return tiny_config


@pytest.fixture
def start_two(start, config):
    """Starts `train.py` in two processes with one device each."""

    def start_two(workdir, second=()):
        default = demo.get_config()
        options = [
            f"--config.{part}.{name}={value}"
            for part in ("model", "data", "train", "optimiser")
            for name, value in config[part].items()
            if value != default[part][name]
        ]
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        common = ["--config=configs/demo.py", *options, f"--workdir={workdir}"]
        return [
            start("train.py", *common, f"--distributed={address},2,{i}", *more, env=ONE_DEVICE_EACH)
            for i, more in enumerate(((), second))
        ]

    return start_two


def ended(two):
    """The exit status, output and errors of each, without what gloo says."""
    told = [process.communicate(timeout=300) for process in two]
    outputs = [re.sub(r"(?m)^\[Gloo\].*\n", "", output) for output, _ in told]
    errors = [error for _, error in told]
    return [process.returncode for process in two], outputs, errors


def last_lines(errors):
    return [error.splitlines()[-1] for error in errors]


def wait_for_step(workdir, step, two):
    end = time.monotonic() + 200
    log = workdir / "log.jsonl"
    while not log.exists() or not any(row["step"] >= step for row in rows(workdir)):
        assert all(process.poll() is None for process in two), ended(two)
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def latest(workdir):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(load(workdir, "latest").params)])


def test_a_signal_to_one_stops_all_at_a_common_step_and_one_process_goes_on(
    start_two, config, tmp_path
):
    """And that gives what one process gives that is never stopped."""
    workdir, whole = tmp_path / "stopped", tmp_path / "whole"
    two = start_two(workdir)
    wait_for_step(workdir, 27, two)
    two[1].send_signal(signal.SIGTERM)
    status, outputs, errors = ended(two)
    step = checkpoint.saved_steps(workdir)[-1]
    assert status == [143, 143] and step < 100, errors
    stopped = f"Stopped and saved after step {step}. Run the same command again to continue"
    stopped += " from there.\n"
    assert outputs == [stopped, ""]
    assert "step/s" not in errors[1] and "Warning" not in errors[1]
    assert {p.name for p in workdir.iterdir()} == {
        *("checkpoints", "log.jsonl", "training.png", "validation.png")
    }
    trained = [row["step"] for row in rows(workdir) if "loss" in row]
    assert trained == list(range(1, step + 1))

    for folder, begun_after in ((workdir, step), (whole, 0)):
        assert fit(config, folder) == Run(folder, begun_after, step=100, steps=100)
    np.testing.assert_allclose(latest(workdir), latest(whole), rtol=1e-4, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_kill_of_one_ends_the_other_and_the_same_command_goes_on(start_two, tmp_path, killed):
    """To the same bits as if nothing had happened."""
    workdir, whole = tmp_path / "killed", tmp_path / "whole"
    two = start_two(workdir)
    wait_for_step(workdir, 60, two)
    two[killed].kill()
    status, _, errors = ended(two)
    assert status[killed] == -signal.SIGKILL and status[1 - killed] == 1
    assert ENDED in errors[1 - killed]
    for folder in (workdir, whole):
        status, outputs, errors = ended(start_two(folder))
        assert status == [0, 0], errors
    assert "Continuing after step" not in outputs[0]
    np.testing.assert_array_equal(latest(workdir), latest(whole))


def test_an_error_in_one_ends_all_with_its_message(start_two, tmp_path):
    with FileLock(tmp_path / ".lock"):
        status, _, errors = ended(start_two(tmp_path))
    problem = f"{tmp_path}: another run is writing to it."
    assert status == [2, 2], errors
    assert last_lines(errors) == [f"train.py: {problem}", f"train.py: Process 0: {problem}"]


@pytest.mark.slow
def test_another_command_in_one_is_refused_in_all(start_two, tmp_path):
    status, _, errors = ended(start_two(tmp_path, second=["--config.train.seed=5"]))
    told = "train.py: Process 1 differs from process 0 in its settings; start all with the same"
    assert status == [2, 2], errors
    assert all(line.startswith(told) for line in last_lines(errors))
    assert not checkpoint.saved_steps(tmp_path)


@pytest.mark.slow
def test_a_save_that_fails_ends_all(start_two, tmp_path):
    two = start_two(tmp_path)
    wait_for_step(tmp_path, 1, two)
    (tmp_path / "checkpoints").write_text("no folder")
    status, _, errors = ended(two)
    assert status == [1, 1]
    assert "000025: cannot be saved" in last_lines(errors)[0] and ENDED in errors[1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"state": {"a": [np.float32(1), np.int32(2)]}, "b": "text"}, None),
        (
            {"state": {"a": [np.float32(1), np.int32(3)]}, "b": "text"},
            "1 differs from process 0 in its state",
        ),
        (
            {"state": {"c": [np.float32(1), np.int32(2)]}, "b": "text"},
            "1 differs from process 0 in its state",
        ),
        (
            {"state": {"a": [np.float32(1), np.int32(2)]}, "b": "words"},
            "1 differs from process 0 in its b",
        ),
    ],
)
def test_what_is_not_the_same_in_all_is_named(monkeypatch, other, message):
    """Of two processes that tell each other what they have, one after the other."""
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "_of_all", lambda value: [*told, value])
    values = {"state": {"a": [np.float32(1), np.int32(2)]}, "b": "text"}
    with agreed() as same:
        same |= values
    told.append({"problems": (), "digests": {n: processes._sha256(v) for n, v in values.items()}})
    refused = pytest.raises(InputError, match=f"Process {message}") if message else nullcontext()
    with refused, agreed() as same:
        same |= other


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nonsense", "must be HOST:PORT,COUNT,INDEX, not nonsense"),
        ("host:1,2,-1", "must be HOST:PORT,COUNT,INDEX, not host:1,2,-1"),
        ("host:1,2,2", "the index must be from 0 to 1, not 2"),
        ("host:123456,2,0", "port 123456 cannot be used"),
    ],
)
def test_an_address_that_is_none_is_refused(address, message):
    with pytest.raises(InputError, match=message), joined(address):
        pass


def test_a_port_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            joined(f"localhost:{port},2,0").__enter__()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--distributed", "give --distributed=HOST:PORT,COUNT,INDEX, because neither Slurm nor"),
        ("--distributed=a:1,1,0 --preview", "--preview runs in one process"),
    ],
)
def test_without_others_it_is_one_line(run, tmp_path, option, message):
    told = run("train.py", *TINY, f"--workdir={tmp_path / 'run'}", *option.split())
    assert told[0] == 2 and message in told[2] and len(told[2].splitlines()) == 1, told
    assert not (tmp_path / "run").exists()


def test_one_process_agrees_with_itself():
    with agreed() as same:
        same["anything"] = object()
    with pytest.raises(InputError, match="own"), agreed():
        raise InputError("own")
    assert writes() and largest(3) == 3
    numbers = Largest()
    assert [numbers.of_call_before(n) for n in (0, 15, 2)] == [0, 15, 2]
