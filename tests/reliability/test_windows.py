"""What other systems lack or refuse, tried on Linux, which lacks nothing; and their memory."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import numpy as np
import psutil
import pytest
import tifffile

from tests.reliability.conftest import ROOT, TINY
from tests.test_checkpoint import FIELDS, a_record, a_state
from unet_jax import checkpoint, hardware
from unet_jax.errors import InputError
from unet_jax.example import Example
from unet_jax.files.hyperstack import Frame, result_file
from unet_jax.files.output import complete, lock, unlocking
from unet_jax.network import UNet
from unet_jax.prediction.predict_files import predict_files
from unet_jax.run.stop import StopRequest
from unet_jax.tiles import choose_tile_side
from unet_jax.training_images import annotated_images

linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux plays Windows; /proc is needed")


@linux
def test_the_programs_run_on_windows(run, tmp_path):
    folder = tmp_path / "Zähler µm \u0148"  # the last letter is not in the console's code page
    workdir, images = folder / "run", folder / "images"
    images.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 70, 60), np.uint8)
    tifffile.imwrite(images / "\u0148.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    console = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONWARNDEFAULTENCODING": "1"}

    training = ["train.py", *TINY, "--config.train.validate_every=2", f"--workdir={workdir}"]
    network = f"--checkpoint={workdir}"
    prediction = ["predict.py", network, f"--images={images}"]
    commands = [
        *(*training, "--config.train.steps=4"),
        *("then", *training, "--config.train.steps=6"),
        *("then", "eval.py", network, "--tune"),
        *("then", "eval.py", network),
        *("then", *prediction, f"--output={folder / 'all'}"),
        *("then", *prediction, f"--output={folder / 'one'}", "--write=cells"),
    ]
    if {"onnx", "bioimageio"} <= {module.name for module in pkgutil.iter_modules()}:
        commands += ["then", "export.py", network, f"--output={folder / 'exported'}"]
    status, output, errors = run(
        "tests/reliability/on_windows.py", *commands, env=console, encoding="cp1252"
    )
    assert status == 0 and "Traceback" not in errors, errors
    for said in (
        f"Finished: {workdir}.",
        "Continuing after step 4.",
        f"{workdir / 'instances.json'}: SEG",
        f"Open {workdir / 'evaluation' / 'report.html'}",
        f"{folder / 'all'}: results for 1 of 1 image file(s)",
        f"{folder / 'one'}: results for 1 of 1 image file(s)",
    ):
        assert said.replace("\u0148", "?") in output
    assert checkpoint.saved_steps(workdir)[-1] == 6
    assert len(list((folder / "all").glob("\u0148_*.*"))) == 3 + 2
    assert ("exported" in commands[-1]) == (folder / "exported" / "unet_run.zip").exists()


@linux
@pytest.mark.parametrize("what", ["mapped", "open", "in a folder"])
def test_linux_plays_windows(tmp_path, what):
    """What the test above goes by."""
    code = """
import os, sys
import numpy as np
from pathlib import Path
from tests.reliability.on_windows import refuse
file, other, what = Path(sys.argv[1], "inner", "file"), Path(sys.argv[1], "other"), sys.argv[2]
file.parent.mkdir()
file.write_bytes(bytes(10))
other.touch()
kept = np.memmap(file, np.uint8, "r") if what == "mapped" else file.open("rb")
sys.addaudithook(refuse)
for change in (lambda: file.replace(other), lambda: other.replace(file), file.unlink):
    try:
        change() if what != "in a folder" else file.parent.rename(file.parent.with_name("new"))
        sys.exit("done")
    except PermissionError:
        pass
del kept
file.replace(other)
"""
    command = [sys.executable, "-c", code, str(tmp_path), what]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_error_is_told_where_windows_does_not_remove_an_open_file(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "The process cannot access the file")

    with pytest.raises(InputError, match="the true error"), complete(tmp_path / "a") as unfinished:
        unfinished.touch()
        monkeypatch.setattr(type(unfinished), "unlink", refused)
        raise InputError("the true error")
    monkeypatch.undo()
    assert [path.name[:12] for path in tmp_path.iterdir()] == [".unfinished-"]
    with unlocking():
        lock(tmp_path)
    assert not list(tmp_path.iterdir())


def test_pages_are_gone_after_the_file_is_written(tmp_path):
    with result_file(tmp_path / "a.tif", Frame("Z", (2,)), (3, 4), np.uint8) as pages:
        pages[1][:] = 7
    assert pages == [] and tifffile.imread(tmp_path / "a.tif")[1].sum() == 7 * 12


HOLD = """
import sys
from pathlib import Path
from unet_jax.training_images import annotated_images
from unet_jax.errors import InputError
from unet_jax.files.output import lock
try:
    lock(Path(sys.argv[1]))
except InputError as error:
    sys.exit(str(error))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Starts another process that locks a folder; returns it and what it said first."""
    processes = []

    def hold(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process, process.stdout.readline() or process.stderr.read()

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_folder_is_locked_until_its_process_ends_or_is_killed(hold, tmp_path):
    other, said = hold(tmp_path)
    assert said == "locked\n"
    with pytest.raises(InputError) as refusal:
        lock(tmp_path)
    assert refusal.value.args == (f"{tmp_path}: another run is writing to it.",)
    other.kill()
    other.wait()
    with unlocking():
        lock(tmp_path)
        lock(tmp_path / ".." / tmp_path.name)  # the same
        assert hold(tmp_path)[1] == f"{tmp_path}: another run is writing to it.\n"
    assert not list(tmp_path.iterdir())
    assert hold(tmp_path)[1] == "locked\n"


def test_a_folder_is_locked_for_other_threads_too(tmp_path):
    def run():
        with unlocking():
            with pytest.raises(InputError, match="another run is writing to it"):
                lock(tmp_path)

    with unlocking():
        lock(tmp_path)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert (tmp_path / ".lock").exists()  # the other thread has not ended it
    assert not list(tmp_path.iterdir())


def test_the_lock_of_another_user_is_respected(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("unet_jax.files.output.FileLock.acquire", acquire)
    with unlocking(), pytest.raises(InputError, match="another run is writing to it"):
        lock(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks on all its file systems")
@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch, number):
    import errno
    import fcntl

    asked = []

    def flock(*_):
        asked.append(number)
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with unlocking():
        lock(tmp_path)
    assert asked


def test_a_stop_request_is_of_the_main_thread_only():
    before, found = signal.getsignal(signal.SIGINT), []

    def run():
        with StopRequest() as stop:
            found.extend([stop.signal, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [0, before]
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal == signal.SIGTERM and signal.getsignal(signal.SIGINT) == before


@pytest.fixture
def machine(monkeypatch):
    """Gives the machine so many bytes of memory, and its GPU so many, None = there is none."""

    def forget():
        hardware.host_memory_bytes.cache_clear()
        hardware.device_memory_bytes.cache_clear()

    def machine(host, gpu):
        statistics = None if gpu is None else {"bytes_limit": gpu}
        devices = [SimpleNamespace(memory_stats=lambda: statistics, device_kind="made up")]
        monkeypatch.setattr(jax, "devices", lambda *_: devices)
        monkeypatch.setattr(jax, "local_devices", lambda *_: devices)
        memory = SimpleNamespace(total=host)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        forget()

    yield machine
    forget()


GIB = 2**30
MACHINES = [(16 * GIB, 80 * GIB), (80 * GIB, 16 * GIB), (16 * GIB, None)]


@pytest.mark.parametrize(("host", "gpu"), MACHINES)
def test_the_two_memories(machine, host, gpu):
    machine(host, gpu)
    assert hardware.host_memory_bytes() == host
    assert hardware.device_memory_bytes() == (gpu or host)


@pytest.mark.parametrize("host", [4 * GIB, 1000 * GIB])
def test_a_gpu_that_does_not_tell_its_memory_is_not_given_the_machines(machine, monkeypatch, host):
    machine(host, None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert hardware.device_memory_bytes() == 8 * GIB


SMALL = 100_000  # bytes; all that follows needs more, and far less than a GiB


@pytest.mark.parametrize(("host", "gpu"), [(SMALL, 80 * GIB), (80 * GIB, SMALL), (SMALL, None)])
def test_each_limit_goes_by_the_memory_that_it_is_of(machine, tmp_path, host, gpu):
    on_device = SMALL not in (gpu, gpu or host)
    network = UNet(**FIELDS | {"width": 64})
    largest = choose_tile_side(network, 1000, 1000)
    checkpoint.save(tmp_path / "run", a_state(), a_record(1))
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", np.eye(60, dtype=np.uint8))

    machine(host, gpu)
    assert (choose_tile_side(network, 1000, 1000) == largest) == on_device
    zeros = np.zeros((100, 100), np.int32)
    example, weights = Example("", zeros, zeros, zeros), np.ones((100, 100), np.float32)
    images = annotated_images([example], [weights])
    assert isinstance(images.image, np.ndarray) != on_device
    # Cells are found by the host.
    predictions = predict_files(
        tmp_path / "run", images=tmp_path / "images", output=tmp_path / "out", kinds=["cells"]
    )
    problems = ["expected at most 781" in problem for problem in predictions.problems]
    assert problems == ([True] if host == SMALL else [])
    assert (tmp_path / "out" / "a_cells.tif").exists() == (host != SMALL)


def test_stored_paths_are_those_of_any_system(tmp_path):
    checkpoint.save(tmp_path, a_state(), a_record(1))
    folder = tmp_path / "checkpoints" / "000001"
    for name in ("sha256.json", "checkpoint.json"):
        assert b"\r" not in (folder / name).read_bytes()
    names = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    assert "params/_METADATA" in names and not any("\\" in name for name in names)
