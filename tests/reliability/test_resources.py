"""Out of memory, and nothing that grows with the number of steps or predictions."""

import contextlib
import os
import sys
import time

import jax
import numpy as np
import pytest

import unet_jax
from tests.reliability.conftest import TINY
from unet_jax import load, predict_tiled, tiles, training_loop
from unet_jax import overlap_tile as overlap_tile_module
from unet_jax.errors import InputError, RunFailed
from unet_jax.run.fit import _out_of_memory_explained, fit
from unet_jax.tiles import choose_tile_side

FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")


@pytest.fixture
def model(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    return load(tmp_path / "run")


def tiles_up_to(side):
    """A stand-in for `tile_probabilities` on a device that no larger tile fits."""
    compiled = overlap_tile_module.tile_probabilities

    def limited(network):
        def predict(params, tiles):
            if tiles.shape[1] > side:
                raise FULL
            return compiled(network)(params, tiles)

        return predict

    return limited


def test_smaller_tiles_are_tried_and_that_is_said(model, monkeypatch, caplog):
    image = np.random.default_rng(0).normal(size=(300, 200))
    expected = predict_tiled(model, image)
    first = choose_tile_side(model.network, *image.shape)
    monkeypatch.setattr(overlap_tile_module, "tile_probabilities", tiles_up_to(140))
    found = predict_tiled(model, image)
    assert f"Out of memory with 1 tile(s) of side {first};" in caplog.text
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_fewer_tiles_at_a_time_come_before_smaller_ones(model, monkeypatch, caplog):
    monkeypatch.setattr(tiles, "tiles_per_batch", lambda *_: 4)
    compiled = overlap_tile_module.tile_probabilities
    seen = []

    def limited(network):
        def predict(params, tiles):
            seen.append(tiles.shape[:2])
            if len(tiles) > 1:
                raise FULL
            return compiled(network)(params, tiles)

        return predict

    monkeypatch.setattr(overlap_tile_module, "tile_probabilities", limited)
    predict_tiled(model, np.eye(60), tile_side=44)
    assert seen[0] == (4, 44) and set(seen[1:]) == {(1, 44)}
    assert "Out of memory with 4 tile(s) of side 44;" in caplog.text


def test_no_tile_fits(model, monkeypatch):
    monkeypatch.setattr(overlap_tile_module, "tile_probabilities", tiles_up_to(0))
    with pytest.raises(MemoryError, match=r"Not even one tile of side \d+ fits"):
        predict_tiled(model, np.eye(60))


def test_other_errors_of_the_device_are_not_taken_for_it(model, monkeypatch):
    def broken(network):
        def predict(params, tiles):
            raise jax.errors.JaxRuntimeError("INTERNAL: something else")

        return predict

    monkeypatch.setattr(overlap_tile_module, "tile_probabilities", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        predict_tiled(model, np.eye(60))


@pytest.mark.parametrize(
    ("batch_size", "remedy"), [(1, "train.tile_side=32"), (3, "train.batch_size=1")]
)
def test_training_out_of_memory_is_one_line_with_a_remedy(
    tiny_config, tmp_path, monkeypatch, batch_size, remedy
):
    def pure_train_step(*_, **__):
        def train_step(*_):
            raise FULL

        return train_step

    monkeypatch.setattr(training_loop, "pure_train_step", pure_train_step)
    tiny_config.train.batch_size = batch_size
    with pytest.raises(RunFailed) as end:
        fit(tiny_config, tmp_path / "run")
    assert f"Out of memory with {batch_size} tile(s) of 44x44 pixels" in str(end.value)
    assert f"--config.{remedy}," in str(end.value) and "\n" not in str(end.value)


def test_the_smallest_tile_is_not_named_as_a_remedy():
    smallest = unet_jax.Configuration(train=unet_jax.TrainSettings(tile_side=188))
    with pytest.raises(RunFailed, match="try a smaller --config.model.width"):
        with _out_of_memory_explained(smallest):
            raise FULL


linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is needed")


def in_use(process="self"):
    """Bytes of anonymous memory and number of open files of a process."""
    with open(f"/proc/{process}/status") as status:
        kilobytes = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
    return kilobytes * 1024, len(os.listdir(f"/proc/{process}/fd"))


@linux
@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_and_files_do_not_grow_with_the_steps(start, tmp_path, steps):
    """In a process of its own; the first dozen validations still warm up."""
    length = f"--config.train.steps={steps}", f"--config.train.validate_every={steps // 50}"
    process = start("train.py", *TINY, *length, f"--workdir={tmp_path / 'run'}")
    samples, log = [], tmp_path / "run" / "log.jsonl"
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):  # before the first step, after the last
            samples.append((log.stat().st_size, *in_use(process.pid)))
        time.sleep(0.02)
    assert process.returncode == 0
    assert_flat(np.array(samples), log.stat().st_size)


@linux
@pytest.mark.parametrize("predictions", [60, pytest.param(1_000, marks=pytest.mark.slow)])
def test_memory_and_files_do_not_grow_with_the_predictions(model, predictions):
    image = np.random.default_rng(0).normal(size=(500, 600))
    samples = []
    for k in range(predictions):
        predict_tiled(model, image)
        samples.append((k, *in_use()))
    assert_flat(np.array(samples), predictions)


def assert_flat(samples, end):
    """Samples (progress, bytes, files): the last fifth needs no more than the second one."""
    early = samples[(samples[:, 0] > 0.2 * end) & (samples[:, 0] <= 0.4 * end)]
    late = samples[samples[:, 0] > 0.8 * end]
    assert len(early) >= 5 and len(late) >= 5
    megabytes = (np.median(late[:, 1]) - np.median(early[:, 1])) / 2**20
    # The fewest: a save or a picture may be under way, and opens a dozen.
    files = late[:, 2].min() - early[:, 2].min()
    print(f"{megabytes:+.1f} MB, {files:+g} files")
    assert megabytes < 40
    assert files <= 2


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(
    tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(training_loop, "pure_train_step", lambda *_, **__: pytest.fail("too late"))
    (tmp_path / "file").touch()
    began = time.monotonic()
    with pytest.raises(InputError, match="cannot be written to"):
        fit(tiny_config, tmp_path / "file" / "run")
    assert time.monotonic() - began < 60
