import json
import logging
import signal

import jax
import numpy as np
import pytest

from unet_jax import checkpoint, load, predict_tiled, training_loop
from unet_jax.data import splits as data_splits
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED
from unet_jax.files.untrusted import MAX_BYTES
from unet_jax.run import fit as fit_module
from unet_jax.run.fit import Run, cross_validate, fit
from unet_jax.run.log import RunLog, read_log


def log_without_time(workdir):
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_log(workdir / "log.jsonl")
    ]


def latest_state(workdir):
    step = checkpoint.saved_steps(workdir)[-1]
    files = sorted((workdir / "checkpoints" / f"{step:06d}").rglob("*"))
    assert files
    return step, load(workdir, "latest").params


def interrupt_at(monkeypatch, step, number=signal.SIGINT):
    """Sends the signal while the batch of a step is put together."""
    original = training_loop.batch_indices

    def interrupting(before, *args):
        if before == step - 1:
            signal.raise_signal(number)
        return original(before, *args)

    monkeypatch.setattr(training_loop, "batch_indices", interrupting)


def test_a_run_leaves_what_it_promises(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    done = fit(tiny_config, workdir, command="as typed")
    assert done == Run(workdir, begun_after=0, step=12, steps=12) and done.status == 0
    evaluate = f"Evaluate it: unet-jax eval --checkpoint={workdir}"
    assert str(done) == f"Finished: {workdir}. {evaluate}"
    assert {p.name for p in workdir.iterdir()} == {
        "checkpoints",
        "log.jsonl",
        "training.png",
        "validation.png",
    }
    rows = read_log(workdir / "log.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    validations = {r["step"]: r["validation"] for r in rows if "validation" in r}
    assert list(validations) == [4, 8, 12]
    assert set(validations[4]) == {"loss", "pixel_error", "rand_error"}
    best = min(validations, key=lambda s: validations[s]["loss"])
    assert checkpoint.best_step(workdir) == best
    assert checkpoint.saved_steps(workdir) == sorted({best, 12})

    model = load(str(workdir))
    training = model.record.training
    assert model.record.step == best
    assert training.splits["test"] == ["picture 5", "picture 6"]
    assert model.class_names == ("membrane", "cell")
    assert training.config.to_dict() == tiny_config.to_dict()
    assert training.config.to_json() == json.loads(json.dumps(tiny_config.to_dict()))
    assert training.command == "as typed" and "jax" in training.versions
    assert predict_tiled(model, np.eye(33)).shape == (33, 33, 2)

    again = fit(tiny_config, workdir)
    assert again == Run(workdir, begun_after=12, step=12, steps=12) and again.status == 0
    assert str(again) == f"This run is finished. {evaluate}"


@pytest.mark.parametrize(
    ("number", "at_once"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 3)]
)
def test_interrupted_and_continued_ends_with_the_same_bits(
    tiny_config, tmp_path, monkeypatch, number, at_once
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(fit_module, "_steps_at_once", lambda: 10 if at_once > 1 else 1)
    assert fit(tiny_config, whole).status == 0
    monkeypatch.setattr(fit_module, "_steps_at_once", lambda: at_once)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6, number)
        stopped = fit(tiny_config, parts)
    assert stopped == Run(parts, begun_after=0, step=6, steps=12, stop_signal=number)
    assert stopped.status == 128 + number
    assert str(stopped) == (
        "Stopped and saved after step 6. Run the same command again to continue from there."
    )
    assert checkpoint.saved_steps(parts)[-1] == 6
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9, number)
        assert fit(tiny_config, parts).status == 128 + number
    assert fit(tiny_config, parts) == Run(parts, begun_after=9, step=12, steps=12)
    assert log_without_time(parts) == log_without_time(whole)

    (step, params), (other_step, other_params) = latest_state(whole), latest_state(parts)
    assert step == other_step == 12
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), params, other_params
    )
    assert all(jax.tree.leaves(same))


def test_an_error_of_the_pictures_ends_the_run(tiny_config, tmp_path, monkeypatch):
    def failing(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(fit_module, "save_training_curves", failing)
    with pytest.raises(OSError, match="the disk is full"):
        fit(tiny_config, tmp_path / "run")


def test_seeds_differ(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "0")
    tiny_config.train.seed = 1
    fit(tiny_config, tmp_path / "1")
    logs = [log_without_time(tmp_path / name) for name in "01"]
    assert all(a["loss"] != b["loss"] for a, b in zip(*logs, strict=True) if "loss" in a)


def test_steps_that_will_be_done_again_leave_the_log(tmp_path):
    file = tmp_path / "log.jsonl"
    RunLog(file, 0).write([{"step": s, "seconds": 0.0} for s in (1, 2, 3)])
    file.write_text(file.read_text() + '{"step": 4, "sec')  # cut off by a kill
    assert [row["step"] for row in read_log(file)] == [1, 2, 3]
    log = RunLog(file, 2)
    log.write([{"step": 3, "seconds": 1.0}])
    assert [row["step"] for row in read_log(file)] == [1, 2, 3]
    assert read_log(file)[-1]["seconds"] == 1.0
    assert read_log(tmp_path / "missing.jsonl") == []


def test_a_log_may_be_longer_than_a_description(tmp_path):
    row = json.dumps({"step": 1, "seconds": 1.0, "loss": 0.5}) + "\n"
    (tmp_path / "log.jsonl").write_text(row + " " * MAX_BYTES + "\n" + row)
    assert len(read_log(tmp_path / "log.jsonl")) == 2


def test_another_configuration_is_refused_key_by_key(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    fit(tiny_config, workdir)
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    tiny_config.augmentation.shift = 0.5
    with pytest.raises(InputError, match=r"config\.augmentation\.shift = 1\.0, not 0\.5"):
        fit(tiny_config, workdir)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.width", 0, "model.width must be a whole number from 1 to 4096, not 0"),
        ("model.depth", 0, "model.depth"),
        ("model.classes", 1, "model.classes must be"),
        ("model.dropout_rate", 1.0, "model.dropout_rate"),
        ("model.dtype", "int8", "float32 or bfloat16"),
        ("model.classes", 3, "class_names must be 3 different names in quotes, as many as"),
        ("class_names", ("cell", "cell"), "class_names must be 2 different names"),
        ("class_colours", ("black",), "class_colours must be 2 colours .* not .'black',."),
        ("class_colours", ("black", "rot"), "class_colours must be 2 colours such as '#ff8000'"),
        ("train.tile_side", 45, r"\[44, 46\]"),
        ("train.steps", 0, "train.steps must be"),
        ("train.batch_size", 0, "train.batch_size"),
        ("optimiser.warmup_steps", 12, "optimiser.warmup_steps"),
        ("optimiser.momentum", 1.0, "optimiser.momentum"),
        ("optimiser.peak_learning_rate", 0.0, "optimiser.peak_learning_rate"),
        ("train.validate_every", 0, "train.validate_every"),
        ("train.seed", -1, "train.seed"),
        ("train.seed", 2**32, "train.seed must be a whole number from 0 to 4294967295"),
        ("weight_map.sigma", 0.0, "weight_map.sigma"),
        ("data.scale", 0.0, "config.data.scale must be above 0 and at most 10, not 0.0."),
        ("augmentation.shift", -1.0, "augmentation.shift"),
        ("augmentation.mirror_probability", 2.0, "mirror_probability must be at most 1"),
        ("weight_map.w0", float("inf"), "weight_map.w0 must be a finite number"),
        ("data.source", "nowhere", "isbi2012, cell_tracking, folder or synthetic, not 'nowhere'"),
        ("data.test", (9, 9), r"data.test = \(9, 9\) is not a range"),
        ("data.test", (0, 1, 2, 3), r"config.data.test must be two whole numbers"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(
    tiny_config, tmp_path, key, value, message
):
    tiny_config.class_colours = ()
    tiny_config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message) as refusal:
        fit(tiny_config, tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_run_and_a_cross_validation_take_a_folder_each(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "run")
    with pytest.raises(InputError, match="run: holds a run without --folds; give another --workd"):
        cross_validate(tiny_config, tmp_path / "run", 2)
    cross_validate(tiny_config, tmp_path / "folds", 2)
    with pytest.raises(InputError, match="folds: holds a cross-validation; give another --workdir"):
        fit(tiny_config, tmp_path / "folds")


def test_a_folder_that_cannot_be_written_is_refused(tiny_config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        fit(tiny_config, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("validate_every", "message"),
    [
        (12, r"Step \d+: the loss is .* at a learning rate of .*; no step was saved"),
        (2, r"Step 2: the network's output is no longer finite, at a learning rate of"),
        (1, r"Step 2: the network's output is no longer finite, at a learning rate of"),
    ],
)
def test_an_infinite_loss_stops_and_keeps_the_last_good_step(
    tiny_config, tmp_path, validate_every, message
):
    tiny_config.optimiser.peak_learning_rate = 1e30
    tiny_config.train.validate_every = validate_every
    with pytest.raises(RunFailed, match=message):
        fit(tiny_config, tmp_path / "run")
    assert checkpoint.saved_steps(tmp_path / "run") == ([1] if validate_every == 1 else [])
    if validate_every == 1:
        params = load(tmp_path / "run", 1).params
        assert all(np.isfinite(p).all() for p in jax.tree.leaves(params))


def test_a_slow_cpu_is_told_of_the_small_configuration(tiny_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fit_module, "_PATIENCE_HOURS", 0)
    fit(tiny_config, tmp_path / "run")
    (notice,) = [r for r in caplog.records if "--config=em_small" in r.getMessage()]
    assert notice.levelno == logging.WARNING


def test_an_absent_class_trains_with_a_notice(tiny_config, tmp_path, caplog):
    tiny_config.model.classes = 3
    tiny_config.class_names = ("membrane", "cell", "nothing")
    with caplog.at_level(logging.WARNING, "unet_jax"):
        assert fit(tiny_config, tmp_path / "run").status == 0
    assert "Class 2 does not occur" in caplog.text


def test_what_a_configuration_does_not_give_is_as_by_default(tiny_config, tmp_path):
    tiny_config.train.steps = tiny_config.train.validate_every = 2
    tiny_config.optimiser.warmup_steps = 1
    fit(tiny_config, tmp_path / "all")
    given = tiny_config.to_dict()
    # The paper's; in the tiny configuration they are the same.
    del given["weight_map"], given["augmentation"]["shift"], given["train"]["seed"]
    del given["model"]["classes"], given["class_names"], given["class_colours"]
    del given["optimiser"]["momentum"], given["data"]["scale"]
    fit(given, tmp_path / "given")
    configs = [load(tmp_path / name).record.training.config for name in ("all", "given")]
    assert configs[0] == configs[1]
    config = configs[1].to_json()
    assert config["weight_map"] == {"w0": 10.0, "sigma": 5.0}
    assert config["augmentation"]["shift"] == 1.0 and config["train"]["seed"] == 0
    assert config["class_names"] == ["membrane", "cell"] and config["class_colours"] == []
    assert config["optimiser"]["momentum"] == 0.99 and config["data"]["scale"] == 1.0
    assert log_without_time(tmp_path / "all") == log_without_time(tmp_path / "given")


def test_every_bad_key_is_told_at_once(tiny_config, tmp_path):
    with tiny_config.unlocked():
        tiny_config.augmentation.shifts = 1.0
        tiny_config.weight_map.w1 = 1.0
        tiny_config.train.sead = 1
        tiny_config.data.hight = 3
        tiny_config.optimiser.momentum = 1.0
    with pytest.raises(InputError) as refusal:
        fit(tiny_config, tmp_path / "run")
    shifts, hight, momentum, seed, w1 = sorted(refusal.value.args)
    assert shifts == (
        "config.augmentation.shifts is not known; the known keys are elastic_pixels, "
        "rotation_degrees, zoom_octaves, shift, mirror_probability, contrast_std, brightness_std."
    )
    assert hight == (
        "config.data.hight is not known; the known keys are source, scale, seed, height, width, "
        "train, validation, test."
    )
    assert momentum == "config.optimiser.momentum must be at least 0 and below 1, not 1.0."
    assert seed.startswith(
        "config.train.sead is not known; the known keys are seed, steps, tile_side, "
    )
    assert w1 == "config.weight_map.w1 is not known; the known keys are w0, sigma."
    with tiny_config.unlocked():
        tiny_config.optimizer = tiny_config.optimiser
    with pytest.raises(InputError, match=r"^config\.optimizer is not known, see docs/"):
        fit(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_value_of_another_type_is_told_at_once(tiny_config, tmp_path):
    with tiny_config.ignore_type():
        tiny_config.train.steps = "100"
        tiny_config.train.batch_size = True
        tiny_config.optimiser.momentum = None
        tiny_config.model.width = 2.0
    with pytest.raises(InputError) as refusal:
        fit(tiny_config, tmp_path / "run")
    assert set(refusal.value.args) == {
        "config.train.steps must be a whole number, not 100.",
        "config.train.batch_size must be a whole number, not True.",
        "config.optimiser.momentum must be a finite number, not None.",
        "config.model.width must be a whole number from 1 to 4096, not 2.0.",
    }


def test_a_split_without_a_pixel_that_counts_is_refused(tiny_config, tmp_path, monkeypatch):
    original = data_splits.read_splits

    def ignored(*args):
        splits = original(*args)
        nothing = [e._replace(labels=np.full_like(e.labels, IGNORED)) for e in splits["validation"]]
        return splits | {"validation": nothing}

    monkeypatch.setattr(data_splits, "read_splits", ignored)
    with pytest.raises(InputError, match="All pixels of the validation split are ignored"):
        fit(tiny_config, tmp_path / "run")


def test_sparse_strokes_train_without_cells(tiny_config, tmp_path, monkeypatch):
    """A stroke of each class in a corner, an image without any: every tile has annotated pixels."""

    original = data_splits.read_splits

    def stroked(*args):
        splits = original(*args)
        for examples in splits.values():
            for i, e in enumerate(examples):
                labels = np.full_like(e.labels, IGNORED)
                labels[2:4, 2:6], labels[8:10, 2:6] = 0, 1
                examples[i] = e._replace(labels=labels, instances=np.zeros_like(labels))
        blank = splits["train"][0]
        blank = blank._replace(name="blank", labels=np.full_like(blank.labels, IGNORED))
        return splits | {"train": [*splits["train"], blank]}

    monkeypatch.setattr(data_splits, "read_splits", stroked)
    workdir = tmp_path / "run"
    assert fit(tiny_config, workdir).status == 0
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 for row in rows if "loss" in row)
    (validation, *_) = [row["validation"] for row in rows if "validation" in row]
    assert set(validation) == {"loss", "pixel_error", "mean_iou"}
    assert "blank" not in load(workdir).record.training.splits["train"]
