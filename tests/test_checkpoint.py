import dataclasses
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from unet_jax import checkpoint, load
from unet_jax.checkpoint import loading
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.errors import InputError, RunFailed
from unet_jax.network import UNet
from unet_jax.optimiser import OptimiserSettings, sgd
from unet_jax.run_record import Record, Training
from unet_jax.sources import Synthetic
from unet_jax.train_step import create_train_state

FIELDS = dict(width=2, depth=2, classes=2, dropout_rate=0.5, dtype="float32")


def a_state(seed=0):
    settings = OptimiserSettings(peak_learning_rate=0.1, warmup_steps=1, momentum_warmup_steps=5)
    return create_train_state(jax.random.key(seed), UNet(**FIELDS), sgd(settings, steps=10), 1)


def a_record(step, loss=None, **changes):
    """Without a word of the training, unless `changes` has one."""
    validation = None if loss is None else {"loss": loss}
    return Record(UNet(**FIELDS), channels=1, step=step, validation=validation, **changes)


def a_training(network, **settings):
    """As `fit` records it; settings are those of the configuration."""
    settings = dict(data=Synthetic(), train=TrainSettings(tile_side=44)) | settings
    return Training(
        config=Configuration(network, **settings),
        class_weights=[2.0, 0.5],
        splits={"train": ["picture 0"], "validation": ["picture 1"], "test": ["picture 2"]},
        data={"picture 0": "0" * 64},
        images={},
        started_from=None,
        fold=0,
        folds=1,
        command="python train.py --config=configs/demo.py",
        versions={"unet-jax": "0.1.0"},
    )


@pytest.fixture
def workdir(tmp_path):
    for step, loss in [(2, 0.5), (4, 0.3), (6, 0.4), (7, None)]:
        checkpoint.save(tmp_path, a_state(step), a_record(step, loss))
    return tmp_path


def same_bits(a, b):
    return all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b)
        )
    )


@pytest.mark.parametrize(
    "validations",
    [
        [{"loss": 0.5}, {"loss": 0.3}, {"loss": 0.4}],
        [  # the loss goes up again before the errors do
            {"loss": 0.3, "pixel_error": 0.05},
            {"loss": 0.4, "pixel_error": 0.04},
            {"loss": 0.5, "pixel_error": 0.06},
        ],
        [
            {"loss": 0.3, "pixel_error": 0.04, "mean_iou": 0.7},
            {"loss": 0.4, "pixel_error": 0.05, "mean_iou": 0.8},
            {"loss": 0.5, "pixel_error": 0.06, "mean_iou": 0.6},
        ],
    ],
)
def test_the_best_step_is_the_one_with_the_lowest_error(tmp_path, validations):
    for step, validation in enumerate(validations):
        record = dataclasses.replace(a_record(step), validation=validation)
        checkpoint.save(tmp_path, a_state(step), record)
    assert checkpoint.best_step(tmp_path) == 1
    assert checkpoint.saved_steps(tmp_path) == [1, 2]


def test_best_and_latest_are_kept_and_come_back_bit_for_bit(workdir):
    assert checkpoint.saved_steps(workdir) == [4, 7]
    assert checkpoint.best_step(workdir) == 4
    for step, expected in [("best", 4), ("latest", 7), (7, 7), ("4", 4)]:
        model = load(workdir, step)
        assert model.record.step == expected
        assert same_bits(model.params, a_state(expected).params)
        assert model.network == UNet(**FIELDS)
    restored = checkpoint.restore(workdir, 7, a_state(0))
    assert restored.step == 7
    assert same_bits(restored.opt_state, a_state(7).opt_state)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_an_average_predicts_and_what_it_is_of_goes_on(tmp_path, saved, wanted):
    """Also where averaging has been switched on or off in between."""
    state, like = a_state(1), a_state(2)
    average = jax.tree.map(lambda x: x + 1, state.params)
    checkpoint.save(tmp_path, state.replace(average=average if saved else None), a_record(7))
    restored = checkpoint.restore(
        tmp_path, 7, like.replace(average=like.params if wanted else None)
    )
    assert same_bits(restored.params, state.params)
    assert (restored.average is None) != wanted
    expected = average if saved else state.params
    assert same_bits(load(tmp_path).params, jax.tree.map(lambda x: x[None], expected))
    if wanted:
        assert same_bits(restored.average, expected)


def test_a_path_through_the_parent_folder(workdir):
    model = load(workdir / ".." / workdir.name)
    assert same_bits(model.params, a_state(4).params)


def test_saving_a_step_again_replaces_it(workdir):
    checkpoint.save(workdir, a_state(99), a_record(7, 0.1))
    assert checkpoint.saved_steps(workdir) == [7]
    assert same_bits(load(workdir).params, a_state(99).params)


def test_an_unfinished_save_is_no_checkpoint(workdir):
    folder = workdir / "checkpoints"
    (folder / "000007" / "sha256.json").unlink()
    assert checkpoint.saved_steps(workdir) == [4]
    assert load(workdir, "latest").record.step == 4
    assert checkpoint.remove_unfinished(workdir) == [folder / "000007"]
    assert sorted(p.name for p in folder.iterdir()) == ["000004"]
    checkpoint.save(workdir, a_state(), a_record(7))
    assert checkpoint.saved_steps(workdir) == [4, 7]


def counted():
    """A state of known numbers, whatever versions draw."""
    return jax.tree.map(lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape), a_state())


@pytest.mark.parametrize("version", ["0.11.0", "0.12.8"])
def test_what_the_oldest_and_the_newest_orbax_wrote_is_read(version):
    """They lie here as `save(workdir, counted(), a_record(1))` wrote them with each."""
    workdir = Path(__file__).parent / "reliability" / "orbax" / version
    restored = checkpoint.restore(workdir, 1, a_state())
    assert same_bits((restored.params, restored.opt_state), (counted().params, counted().opt_state))
    assert same_bits(load(workdir).params, counted().params)


@pytest.mark.parametrize("other", [{"use_zarr3": True}, {"use_ocdbt": False}])
def test_a_layout_that_is_not_read_is_not_left_for_a_checkpoint(workdir, monkeypatch, other):
    original = ocp.PyTreeCheckpointHandler
    monkeypatch.setattr(
        ocp, "PyTreeCheckpointHandler", lambda **options: original(**options | other)
    )
    with pytest.raises(RunFailed, match="000009: cannot be saved .*no such array"):
        checkpoint.save(workdir, a_state(), a_record(9))
    assert checkpoint.saved_steps(workdir) == [4, 7]
    assert not (workdir / "checkpoints" / "000009").exists()


def test_what_is_saved_in_the_background_is_a_copy(tmp_path):
    """The next step uses up the arrays of the one before, or writes over them."""
    begin, state = threading.Event(), jax.tree.map(jnp.copy, a_state(5))
    with checkpoint.Saver(tmp_path) as saver:
        saver._background.submit(begin.wait)
        saver.save(state, a_record(1))
        jax.block_until_ready(jax.jit(overwritten, donate_argnums=0)(state))
        begin.set()
    assert all(x.is_deleted() for x in jax.tree.leaves(state)), "a view would keep it"
    assert same_bits(load(tmp_path).params, a_state(5).params)


def overwritten(state):
    return jax.tree.map(lambda x: x + x.dtype.type(1), state)


def refused(workdir, step="best"):
    before = sorted(workdir.rglob("*"))
    with pytest.raises(InputError) as refusal:
        load(workdir, step)
    assert "\n" not in str(refusal.value)
    assert sorted(workdir.rglob("*")) == before, "reading creates nothing"
    return str(refusal.value)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    assert "no checkpoint in this folder" in refused(tmp_path)
    assert "no checkpoint in this folder" in refused(tmp_path / "missing")


def test_a_step_that_is_not_there(workdir):
    assert "no step 5; the steps are best, latest, 4, 7" in refused(workdir, 5)
    assert "no step newest" in refused(workdir, "newest")


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "missing", "no digests"])
def test_every_damaged_file_is_found(workdir, damage):
    folder = workdir / "checkpoints" / "000004"
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert len(files) > 5
    if damage == "no digests":
        (folder / "sha256.json").write_text("{}")
        assert "damaged" in refused(workdir, 4)
        return
    for file in files:
        content = file.read_bytes()
        if damage == "missing":
            file.unlink()
        elif damage == "truncated":
            file.write_bytes(content[: len(content) // 2])
        else:
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        message = refused(workdir, 4)
        assert "damaged" in message or "no step 4" in message, file
        file.write_bytes(content)
    assert load(workdir, 4).record.step == 4


def test_what_file_managers_leave_is_no_damage(workdir):
    folder = workdir / "checkpoints" / "000007"
    for name in (".DS_Store", "params/._d", "Thumbs.db", "params/d/desktop.ini"):
        (folder / name).write_bytes(b"\0")
    (folder / ".AppleDouble").mkdir()
    assert load(workdir, 7).record.step == 7
    (folder / "new").write_bytes(b"")
    assert "new was not saved" in refused(workdir, 7)


@pytest.mark.parametrize("step", ["best", "latest"])
def test_a_step_that_is_replaced_while_it_is_read(workdir, monkeypatch, step):
    """By the run that goes on."""
    expected, read = load(workdir, step).record.step, loading.describe

    def replaced(folder, number):
        checkpoint.save(folder, a_state(10), a_record(10, 0.0))
        monkeypatch.setattr(loading, "describe", read)
        return read(folder, number)

    monkeypatch.setattr(loading, "describe", replaced)
    assert load(workdir, step).record.step == 10 != expected


def test_a_full_disk_is_one_line_and_leaves_the_steps_before(workdir, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED:\n No space left on device")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(RunFailed, match=r"000009: cannot be saved \(RESOURCE_EXHAUSTED: No space"):
        checkpoint.save(workdir, a_state(), a_record(9))
    assert checkpoint.saved_steps(workdir) == [4, 7]
