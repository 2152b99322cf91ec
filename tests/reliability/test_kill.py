"""Runs that are killed, asked to stop, or left without disk: nothing is lost, nothing is twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import imagecodecs
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tifffile

from tests.reliability.conftest import TINY, rows
from unet_jax import checkpoint, load

UNBUFFERED = os.environ | {"PYTHONUNBUFFERED": "1"}


def options(workdir, steps, validate_every=10):
    return [
        *TINY,
        f"--config.train.steps={steps}",
        f"--config.train.validate_every={validate_every}",
        f"--workdir={workdir}",
    ]


def newest(workdir):
    return max(checkpoint.saved_steps(workdir), default=0)


def unfinished(workdir):
    """Whether a step was left, or is, without its manifest: half written or half removed."""
    folders = list((workdir / "checkpoints").glob("*"))
    return any(not (folder / "sha256.json").exists() for folder in folders if folder.is_dir())


def saving(workdir):
    """Whether a step newer than all complete ones is being written."""
    folders = list((workdir / "checkpoints").glob("[0-9]*"))
    return any(
        int(folder.name) > newest(workdir) and not (folder / "sha256.json").exists()
        for folder in folders
    )


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


def has_logged_after(workdir, step, inode):
    """Whether the run that writes the log now (another file than before) has done a new step."""
    log = workdir / "log.jsonl"
    if not log.exists() or log.stat().st_ino == inode:
        return False
    lines = log.read_text().splitlines()
    try:
        return bool(lines) and json.loads(lines[-1])["step"] > step
    except ValueError:
        return False  # a line half written


def arrays(workdir):
    """Parameters and optimiser state of the newest step as bytes."""
    folder = workdir / "checkpoints" / f"{newest(workdir):06d}"
    with ocp.StandardCheckpointer() as checkpointer:
        trees = [checkpointer.restore(folder / name) for name in ("params", "opt_state")]
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trees)]


def assert_same_run(workdir, whole):
    assert newest(workdir) == newest(whole)
    assert rows(workdir) == rows(whole)
    assert arrays(workdir) == arrays(whole)


@pytest.mark.parametrize(
    ("kills", "during_save", "steps"),
    [(2, 1, 120), pytest.param(50, 30, 6000, marks=pytest.mark.slow)],
)
def test_sigkill_loses_nothing_that_was_saved(start, run, tmp_path, kills, during_save, steps):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    rng = np.random.default_rng(0)
    resumed_at, killed_in_a_save = [], 0
    for kill in range(kills):
        log = workdir / "log.jsonl"
        before, inode = newest(workdir), log.stat().st_ino if log.exists() else None
        process = start("train.py", *options(workdir, steps), env=UNBUFFERED)
        wait_for(lambda b=before, i=inode: has_logged_after(workdir, b, i), process)
        wait_for(lambda b=before: newest(workdir) > b, process)
        if kill < during_save:
            wait_for(lambda: saving(workdir), process)
            time.sleep(rng.uniform(0, 0.03))
        else:
            time.sleep(rng.uniform(0, 1))
        process.kill()
        output, _ = process.communicate()
        killed_in_a_save += saving(workdir)
        if before:
            assert f"Continuing after step {before}." in output
            resumed_at.append(before)
    assert killed_in_a_save >= during_save * 5 // 6
    assert len(resumed_at) == kills - 1 and resumed_at == sorted(set(resumed_at))

    left_behind = unfinished(workdir)
    status, output, errors = run("train.py", *options(workdir, steps))
    assert status == 0, errors
    assert f"Continuing after step {resumed_at[-1]}" not in output
    assert ("removed an incomplete save" in output) == left_behind
    assert not unfinished(workdir)
    assert run("train.py", *options(whole, steps))[0] == 0
    assert_same_run(workdir, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_asked_to_stop_it_saves_and_goes_on_identically(start, run, tmp_path, times):
    workdir, whole = tmp_path / "run", tmp_path / "whole"
    steps = 100 * times
    for number in [signal.SIGTERM, signal.SIGINT] * times:
        log = workdir / "log.jsonl"
        before, inode = newest(workdir), log.stat().st_ino if log.exists() else None
        process = start("train.py", *options(workdir, steps, validate_every=1000))
        wait_for(lambda b=before, i=inode: has_logged_after(workdir, b, i), process)
        process.send_signal(number)
        asked = time.monotonic()
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number, errors
        assert time.monotonic() - asked < 30  # other tests may be at work
        assert f"Stopped and saved after step {newest(workdir)}." in output
        assert newest(workdir) > before
    assert run("train.py", *options(workdir, steps, validate_every=1000))[0] == 0
    assert run("train.py", *options(whole, steps, validate_every=1000))[0] == 0
    assert_same_run(workdir, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_ends_the_run_with_the_last_step_intact(start, run, small_disk):
    workdir = small_disk / "run"
    process = start("train.py", *options(workdir, steps=5000))
    wait_for(lambda: newest(workdir) >= 20, process)
    with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(4096))
    filled_at = rows(workdir)[-1]["step"]
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No space left" in errors.splitlines()[-1] and "Traceback" not in errors
    assert newest(workdir) <= filled_at + 20
    kept = newest(workdir)
    assert load(workdir, "latest").record.step == kept

    (small_disk / "filler").unlink()
    status, output, errors = run("train.py", *options(workdir, steps=kept + 10))
    assert status == 2 and "config.train.steps" in errors  # fewer steps than the run began with
    process = start("train.py", *options(workdir, steps=5000), env=UNBUFFERED)
    wait_for(lambda: newest(workdir) > kept, process)
    process.kill()
    assert f"Continuing after step {kept}." in process.communicate()[0]


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_evaluation_leaves_each_output_absent_or_complete(start, run, tmp_path, kills):
    workdir, out = tmp_path / "run", tmp_path / "out"
    assert run("train.py", *options(workdir, steps=4, validate_every=4))[0] == 0
    evaluation = ["eval.py", f"--checkpoint={workdir}", f"--out={out}", "--overwrite"]
    began = time.monotonic()
    assert run(*evaluation)[0] == 0
    whole = time.monotonic() - began

    rng = np.random.default_rng(0)
    outcomes = set()
    for kill in range(kills):
        for file in out.iterdir():
            file.unlink()
        process = start(*evaluation)
        if kills == 1:
            wait_for(lambda: complete_outputs(out), process)
        else:  # outputs are written at the end
            time.sleep(whole * (rng.uniform(0.6, 1) if kill % 3 else rng.uniform(0, 1)))
        process.kill()
        process.communicate()
        outcomes.add(len(complete_outputs(out)))
    assert 0 in outcomes or kills < 10
    assert run(*evaluation)[0] == 0
    names = {"examples.png", "report.html", "report.json", "report.csv"}
    assert complete_outputs(out) == names


def complete_outputs(out):
    """The outputs that are there, each of which must be whole."""
    names = {file.name for file in out.iterdir() if not file.name.startswith(".")}
    if "report.json" in names:
        assert json.loads((out / "report.json").read_text())["scores"]
    if "report.html" in names:
        assert (out / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")
    if "examples.png" in names:
        assert imagecodecs.png_decode((out / "examples.png").read_bytes()).size
    return names


@pytest.mark.parametrize("kills", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_prediction_leaves_each_output_absent_or_complete(start, run, tmp_path, kills):
    workdir, out, images = tmp_path / "run", tmp_path / "out", tmp_path / "images"
    assert run("train.py", *options(workdir, steps=4, validate_every=4))[0] == 0
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        tifffile.imwrite(images / f"{i}.tif", rng.integers(0, 255, (300, 40 + 20 * i), np.uint8))
    command = ["predict.py", f"--checkpoint={workdir}", f"--images={images}"]
    for output in ("first", "whole"):  # the first one compiles, which those below need not do
        began = time.monotonic()
        assert run(*command, f"--output={tmp_path / output}")[0] == 0
        seconds = time.monotonic() - began

    counts = []
    for kill in range(kills):
        if kill % 6 == 0:  # else it goes on
            shutil.rmtree(out, ignore_errors=True)
        process = start(*command, f"--output={out}")
        time.sleep(seconds * rng.uniform(0.5, 1))
        process.kill()
        process.communicate()
        counts.append(sum(same_result(path, tmp_path / "whole") for path in results(out)))
    assert len(set(counts)) > 5 or kills < 10
    assert run(*command, f"--output={out}")[0] == 0
    assert [path.name for path in results(out)] == [p.name for p in results(tmp_path / "whole")]
    assert all(same_result(path, tmp_path / "whole") for path in results(out))
    assert not list(out.glob(".*"))


def results(out):
    """What has been written under its name, without the record."""
    return sorted(p for p in out.glob("*") if p.suffix in (".tif", ".png") and p.name[0] != ".")


def same_result(path, folder):
    """Whether a result is that of an uninterrupted prediction; everything else fails."""
    whole = folder / path.name
    if path.suffix == ".png":
        assert path.read_bytes() == whole.read_bytes()
    else:
        np.testing.assert_array_equal(tifffile.imread(path), tifffile.imread(whole))
    return True
