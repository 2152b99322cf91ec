"""Going on with a run: only as it was, but for what the user names as wanted."""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest
import tifffile

from tests.reliability.conftest import ROOT, rows
from tests.test_evaluate import use_folder
from unet_jax import checkpoint, load, predict_tiled, training_loop
from unet_jax.checkpoint import saving
from unet_jax.configuration import read_configuration
from unet_jax.errors import InputError, RunFailed
from unet_jax.optimiser import OptimiserSettings, create_optimiser, sgd
from unet_jax.run.fit import cross_validate, fit
from unet_jax.run.log import RunLog
from unet_jax.train_step import create_train_state
from unet_jax.training_loop import initial_state


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*")}


def refused(config, workdir, **settings):
    before = snapshot(workdir)
    with pytest.raises(InputError) as refusal:
        fit(config, workdir, **settings)
    assert snapshot(workdir) == before
    return refusal.value.args


@pytest.fixture(autouse=True)
def notices(caplog):
    """What the library says on the way is of the lowest level that a program shows."""
    caplog.set_level(logging.INFO, "unet_jax")


@pytest.fixture
def workdir(tiny_config, tmp_path):
    tiny_config.train.steps = 8
    fit(tiny_config, tmp_path / "run")
    return tmp_path / "run"


def test_every_changed_key_is_told(tiny_config, workdir):
    tiny_config.augmentation.shift = 0.5
    tiny_config.weight_map.w0 = 3.0
    tiny_config.train.steps = 7
    lines = refused(tiny_config, workdir)
    assert len(lines) == 3 and all("\n" not in line for line in lines)
    told = " ".join(lines)
    assert "config.augmentation.shift = 1.0, not 0.5" in told
    assert "config.weight_map.w0 = 10.0, not 3.0" in told
    assert "config.train.steps = 8, not 7" in told
    assert "--allow_change=config.train.steps" in told


def test_a_change_named_as_wanted_is_made_and_told(tiny_config, workdir, caplog):
    tiny_config.train.steps = 12
    tiny_config.augmentation.shift = 0.5
    tiny_config.weight_map.w0 = 3.0
    wanted = ["config.augmentation.shift"]
    assert "w0" in " ".join(refused(tiny_config, workdir, allow_change=wanted))
    assert fit(tiny_config, workdir, allow_change=[*wanted, "config.weight_map"]).step == 12
    assert caplog.messages[-4] == "Continuing after step 8."
    assert sorted(caplog.messages[-3:]) == [
        "  with config.augmentation.shift = 0.5 instead of 1.0",
        "  with config.train.steps = 12 instead of 8",
        "  with config.weight_map.w0 = 3.0 instead of 10.0",
    ]
    assert load(workdir, "latest").record.training.config.weight_map.w0 == 3.0
    # What has been saved since is the run as it is now.
    assert fit(tiny_config, workdir).status == 0


def test_a_run_without_colours_goes_on_with_some(tiny_config, workdir, caplog):
    tiny_config.class_colours = ("#102030", "white")
    assert fit(tiny_config, workdir).status == 0
    assert "with config.class_colours = ['#102030', 'white'] instead of nothing" in caplog.text


def test_more_steps_are_no_conflict_and_fewer_are(tiny_config, workdir, caplog):
    tiny_config.train.steps = 12
    assert fit(tiny_config, workdir).step == 12
    assert "config.train.steps = 12 instead of 8" in caplog.text
    assert [r["step"] for r in rows(workdir) if "loss" in r] == list(range(1, 13))
    tiny_config.train.steps = 10
    lines = refused(tiny_config, workdir, allow_change=["config.train.steps"])
    assert lines == (
        f"{workdir}: this run is already at step 12; give at least as many --config.train.steps.",
    )


def test_another_network_is_refused_by_its_first_difference(tiny_config, workdir):
    tiny_config.train.steps = 12
    tiny_config.model.width = 4
    (line,) = refused(tiny_config, workdir, allow_change=["config.model"])
    assert (
        "belongs to another network: classes" in line and "kernel is (1, 1, 2, 2) float32" in line
    )
    assert "expected (1, 1, 4, 2) float32" in line


def test_other_pixels_are_other_data(tiny_config, folder_data, tmp_path):
    images, masks = tmp_path / "images", tmp_path / "masks"
    use_folder(tiny_config, images, masks, mask_rule="binary", ignore_value=-1)
    tiny_config.train.steps = 4
    workdir = tmp_path / "run"
    assert fit(tiny_config, workdir).status == 0
    tiny_config.train.steps = 8
    pixels = tifffile.imread(images / "3.tif")
    pixels[0, 0] ^= 1
    tifffile.imwrite(images / "3.tif", pixels)
    (line,) = refused(tiny_config, workdir)
    assert "holds a run with data.3 = " in line and "--allow_change=data." in line
    # The same images elsewhere are the same data.
    pixels[0, 0] ^= 1
    tifffile.imwrite(images / "3.tif", pixels)
    moved = images.rename(tmp_path / "moved")
    tiny_config.data.images = str(moved)
    assert "config.data.images" in refused(tiny_config, workdir)[0]
    assert fit(tiny_config, workdir, allow_change=["config.data.images"]).status == 0


def test_many_differences_are_counted(tiny_config, workdir):
    tiny_config.data.seed = 99
    lines = refused(tiny_config, workdir)
    assert len(lines) == 6 and "more differences of this kind" in lines[-1]


def test_a_damaged_newest_step_stops_and_names_the_last_good_one(tiny_config, workdir):
    good, newest = 4, 8
    best = checkpoint.best_step(workdir)
    assert best in (good, newest)
    if best == newest:  # keep both
        state = create_train_state(jax.random.key(0), *network_and_optimiser(tiny_config), 1)
        saved = checkpoint.describe(workdir, newest)
        validation = saved.validation | {"loss": 0.0}
        checkpoint.save(workdir, state, replace(saved, step=good, validation=validation))
    file = workdir / "checkpoints" / "000008" / "params" / "_METADATA"
    file.write_bytes(file.read_bytes() + b" ")
    tiny_config.train.steps = 12
    (line,) = refused(tiny_config, workdir)
    assert "000008: the checkpoint is damaged (params/_METADATA is not what was saved)" in line
    assert "the last good step is 4; remove the damaged folder" in line


def network_and_optimiser(config):
    settings = read_configuration(config)
    return settings.model, sgd(settings.optimiser, steps=settings.train.steps)


def test_an_unfinished_step_is_removed_with_a_message(tiny_config, workdir, caplog):
    (workdir / "checkpoints" / "000009" / "params").mkdir(parents=True)
    tiny_config.train.steps = 12
    assert fit(tiny_config, workdir).step == 12
    assert "000009: removed an incomplete save." in caplog.text
    assert not (workdir / "checkpoints" / "000009").exists()


def test_folders_that_are_no_steps_are_left_alone(tiny_config, workdir):
    kept = workdir / "checkpoints" / "000008_for_the_paper" / "notes"
    kept.mkdir(parents=True)
    tiny_config.train.steps = 12
    assert fit(tiny_config, workdir).status == 0
    assert kept.exists()


def test_losses_of_other_weights_do_not_compete_for_the_best_step(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    tiny_config.weight_map.w0 = 0.0
    tiny_config.train.steps = 4
    fit(tiny_config, workdir)
    tiny_config.weight_map.w0 = 500.0  # a higher loss, however good the network
    tiny_config.train.steps = 8
    fit(tiny_config, workdir, allow_change=["config.weight_map"])
    assert checkpoint.best_step(workdir) == 8


def test_a_damaged_best_step_is_told_before_training(tiny_config, workdir):
    best = checkpoint.best_step(workdir)
    file = workdir / "checkpoints" / f"{best:06d}" / "checkpoint.json"
    file.write_bytes(file.read_bytes() + b" ")
    tiny_config.train.steps = 12
    (line,) = refused(tiny_config, workdir)
    assert f"{best:06d}: the checkpoint is damaged" in line


def test_the_step_is_compiled_once_in_a_run_that_goes_on(tiny_config, workdir, monkeypatch):
    made = []
    original = training_loop.compiled_steps

    def noting(*args):
        made.append(original(*args))
        return made[0]

    monkeypatch.setattr(training_loop, "compiled_steps", noting)
    tiny_config.train.steps = 12
    assert fit(tiny_config, workdir).status == 0
    assert made[0]._cache_size() == 1


def test_a_stop_request_in_the_last_step_ends_a_cross_validation(
    tiny_config, tmp_path, monkeypatch
):
    original = checkpoint.save

    def stopping(workdir, state, record, measured):
        original(workdir, state, record)
        if record.step == 4:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(saving, "save", stopping)
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    (run,) = cross_validate(tiny_config, tmp_path, 2)
    assert run.status == 128 + signal.SIGTERM and run.step == 4
    assert [p.name for p in tmp_path.iterdir()] == ["fold0"]
    runs = cross_validate(tiny_config, str(tmp_path), 2)
    assert [run.status for run in runs] == [0, 128 + signal.SIGTERM]
    assert checkpoint.saved_steps(tmp_path / "fold1") == [4]


def test_the_same_seed_gives_the_same_bits(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    digests = []
    for name in "ab":
        fit(tiny_config, tmp_path / name)
        digests.append(digest_of(load(tmp_path / name)))
    assert digests[0] == digests[1]


def digest_of(model):
    leaves = jax.tree.leaves(model.params)
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in leaves)).hexdigest()


SAVE_ON_FOUR = """
import jax, numpy as np, sys
from pathlib import Path
from tests.test_checkpoint import a_record, a_state
from unet_jax import checkpoint, load
assert len(jax.devices()) == 4
mesh = jax.sharding.Mesh(np.array(jax.devices()), "x")
def spread(x):
    axes = [d for d in range(x.ndim) if x.shape[d] % 4 == 0]
    names = ["x" if axes and d == axes[0] else None for d in range(x.ndim)]
    spec = jax.sharding.PartitionSpec(*names)
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
state = jax.tree.map(spread, a_state(5))
assert any(not x.is_fully_replicated for x in jax.tree.leaves(state.params))
with checkpoint.Saver(Path(sys.argv[1])) as saver:
    saver.save(state, a_record(3))
"""
LOAD = """
import sys
from tests.reliability.test_resume import digest_of
from unet_jax import load
print(digest_of(load(sys.argv[1])))
"""


def on_devices(count, code, folder):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_saved_on_four_devices_it_loads_on_one_and_on_six(tmp_path):
    from tests.test_checkpoint import a_state

    on_devices(4, SAVE_ON_FOUR, tmp_path)
    params = jax.tree.leaves(a_state(5).params)
    expected = hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in params)).hexdigest()
    assert on_devices(1, LOAD, tmp_path) == on_devices(6, LOAD, tmp_path) == expected


def test_the_checkpoint_of_an_earlier_release_predicts_the_same():
    golden = ROOT / "tests" / "reliability" / "golden"
    releases = sorted(p for p in golden.iterdir() if p.is_dir())
    assert releases
    for release in releases:
        expected = np.load(release / "expected.npz")
        model = load(release / "run")
        np.testing.assert_allclose(
            predict_tiled(model, expected["image"]), expected["probabilities"], atol=1e-5
        )
        assert model.record.training.versions["unet-jax"] == release.name


def test_a_run_of_an_earlier_release_goes_on(tmp_path):
    releases = sorted((ROOT / "tests" / "reliability" / "golden").glob("*/run"))
    assert releases
    for release in releases:
        workdir = tmp_path / release.parent.name
        shutil.copytree(release, workdir)
        config = load(workdir).record.training.config
        run = fit(replace(config, train=replace(config.train, steps=24)), workdir)
        assert (run.begun_after, run.step) == (20, 24)
        assert load(workdir, "latest").record.step == 24


def test_with_adam_and_an_average_it_goes_on_bit_for_bit(tiny_config, tmp_path, monkeypatch):
    tiny_config.optimiser.kind = "adam"
    tiny_config.train.average_over = 0.5
    assert fit(tiny_config, tmp_path / "whole").step == 12
    original = checkpoint.save

    def stopping(workdir, state, record, measured):
        original(workdir, state, record, measured)
        if record.step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", stopping)
        assert 4 <= fit(tiny_config, tmp_path / "parts").step < 12
    assert fit(tiny_config, tmp_path / "parts").step == 12
    like = initial_state(
        read_configuration(tiny_config), create_optimiser(OptimiserSettings(kind="adam")), 1
    )
    whole, parts = (checkpoint.restore(tmp_path / name, 12, like) for name in ("whole", "parts"))
    bits = [[x.tobytes() for x in jax.tree.leaves(jax.device_get(s))] for s in (whole, parts)]
    assert bits[0] == bits[1] and len(bits[0]) > 3 * len(jax.tree.leaves(whole.params))


def test_saving_does_not_hold_up_training(tiny_config, tmp_path, monkeypatch):
    """While a save goes on, so do the steps up to the next one."""
    original, logged = checkpoint.save, threading.Event()

    def slow_save(workdir, state, record, measured):
        assert record.step != 4 or logged.wait(60), "step 8 has waited for the save of step 4"
        original(workdir, state, record)

    monkeypatch.setattr(saving, "save", slow_save)
    write = RunLog.write

    def noting_write(log, new_rows):
        if any(row["step"] == 8 for row in new_rows):
            logged.set()
        write(log, new_rows)

    monkeypatch.setattr(RunLog, "write", noting_write)
    assert fit(tiny_config, tmp_path / "run").status == 0
    assert checkpoint.saved_steps(tmp_path / "run")[-1] == 12


def test_an_error_of_a_background_save_ends_the_run(tiny_config, tmp_path, monkeypatch):
    original = checkpoint.save

    def failing_save(workdir, state, record, measured):
        if record.step == 8:
            raise RunFailed("000008: cannot be saved (No space left on device).")
        original(workdir, state, record)

    monkeypatch.setattr(saving, "save", failing_save)
    tiny_config.train.steps = 100
    with pytest.raises(RunFailed, match="No space left"):
        fit(tiny_config, tmp_path / "run")
    assert checkpoint.saved_steps(tmp_path / "run") == [4]
    assert rows(tmp_path / "run")[-1]["step"] <= 12, "at the next save at the latest"


def test_a_state_that_is_not_finite_is_never_saved(tiny_config, workdir):
    state = create_train_state(jax.random.key(0), *network_and_optimiser(tiny_config), 1)
    broken = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
    with pytest.raises(RunFailed, match="no longer finite"):
        checkpoint.save(workdir, broken, replace(checkpoint.describe(workdir, 8), step=9))
    assert checkpoint.saved_steps(workdir)[-1] == 8


@pytest.mark.parametrize("seed", range(2))
def test_a_hundred_flips_and_truncations_are_all_found(workdir, seed):
    step = checkpoint.saved_steps(workdir)[-1]
    folder = workdir / "checkpoints" / f"{step:06d}"
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.stat().st_size)
    rng = np.random.default_rng(seed)
    for _ in range(100):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        position = int(rng.integers(len(content)))
        if rng.random() < 0.3:
            file.write_bytes(content[:position])
        else:
            flipped = content[position] ^ (1 << int(rng.integers(8)))
            file.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
        with pytest.raises(InputError, match="damaged"):
            load(workdir, step)
        file.write_bytes(content)
    assert load(workdir, step).record.step == step
