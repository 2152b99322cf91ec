"""The numerical guard: a step that is not finite stops the run and can be replayed."""

import json
import logging

import jax
import numpy as np
import pytest

from tests.test_checkpoint import a_record, a_state
from unet_jax import checkpoint
from unet_jax.configuration import read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.errors import RunFailed
from unet_jax.example import IGNORED, Example, separated
from unet_jax.network import context
from unet_jax.optimiser import sgd
from unet_jax.run.fit import fit
from unet_jax.run.guard import collapse, record_failure
from unet_jax.run.log import read_log
from unet_jax.train_step import create_train_state, make_train_step, tile_keys
from unet_jax.training_images import Draw, annotated_images, batch_indices, take
from unet_jax.weight_map import class_weights, weight_maps


@pytest.fixture
def failing_config(tiny_config):
    """Steps far too large, so that the loss is not finite after a few of them."""
    tiny_config.optimiser.peak_learning_rate = 1e30
    return tiny_config


def test_the_step_that_failed_is_named_recorded_and_replayed(failing_config, tmp_path):
    config, workdir = failing_config, tmp_path / "run"
    config.train.validate_every = 12
    # So little that it takes but a part of each image.
    config.train.tile_side, config.augmentation.elastic_pixels = 24, 0.5
    with pytest.raises(
        RunFailed, match=r"Step \d+: the loss is .* the steps are probably too large"
    ) as end:
        fit(config, workdir)
    record = json.loads((workdir / "failure.json").read_text())
    step = record["step"]
    assert f"Step {step}: the loss is" in str(end.value) and "failure.json" in str(end.value)
    assert record["last_saved"] is None and "no step was saved" in str(end.value)
    assert [row["step"] for row in read_log(workdir / "log.jsonl")] == list(range(1, step))

    # The batches before it are those of its seed, and its own is what was recorded.
    settings = read_configuration(config)
    network, tile_side = settings.model, settings.train.tile_side
    examples = [separated(e) for e in read_splits(settings.data, 2)["train"]]
    weights = class_weights([e.labels for e in examples], 2)
    images = annotated_images(examples, weight_maps(examples, weights, settings.weight_map))
    tiles = dict(settings=settings.augmentation, tile_side=tile_side, context=context(2))
    optimiser = sgd(settings.optimiser, steps=settings.train.steps)
    initial_key, training_key = jax.random.split(jax.random.key(record["seed"]))
    state = create_train_state(initial_key, network, optimiser, 1)
    train_step = make_train_step(
        network, optimiser, tile_side=tile_side, augmentation=settings.augmentation
    )
    for before in range(1, step):
        indices = batch_indices(before - 1, len(examples), 1, record["seed"])
        key = jax.random.fold_in(training_key, before)
        batch = take(images, indices, tile_keys(key, 1), **tiles)
        state, metrics = train_step(state, batch, key)
        assert np.isfinite(metrics["loss"])
    names = [e.name for e in examples]
    indices = np.array([names.index(name) for name in record["examples"]])
    key = jax.random.wrap_key_data(np.array(record["key"], np.uint32))
    batch = take(images, indices, tile_keys(key, 1), **tiles)
    _, metrics = train_step(state, batch, key)
    assert {name: str(float(metrics[name])) for name in ("loss", "gradient_norm")} == {
        name: record[name] for name in ("loss", "gradient_norm")
    }


def test_it_is_named_among_steps_that_are_done_at_once(failing_config, tmp_path, monkeypatch):
    failing_config.train.validate_every, records = 12, []
    for at_once in (1, 10):
        monkeypatch.setattr("unet_jax.run.fit._steps_at_once", lambda n=at_once: n)
        workdir = tmp_path / str(at_once)
        with pytest.raises(RunFailed, match=r"Step \d+: the loss is"):
            fit(failing_config, workdir)
        records.append(json.loads((workdir / "failure.json").read_text()))
        logged = [row["step"] for row in read_log(workdir / "log.jsonl")]
        assert logged == list(range(1, records[-1]["step"])) and len(logged) < 9
    for name in ("step", "examples", "key", "learning_rate", "last_saved"):
        assert records[0][name] == records[1][name]


def test_the_same_command_meets_the_same_failure_after_the_last_good_step(
    failing_config, tmp_path, caplog
):
    caplog.set_level(logging.INFO, "unet_jax")
    config, workdir = failing_config, tmp_path / "run"
    # The first step, whose learning rate is 0, is good.
    config.train.validate_every = 1
    errors = []
    for _ in range(2):
        with pytest.raises(RunFailed) as end:
            fit(config, workdir)
        errors.append(str(end.value))
    assert errors[0] == errors[1]
    assert caplog.messages.count("Continuing after step 1.") == 1
    assert checkpoint.saved_steps(workdir) == [1]


def failure(tmp_path, norms):
    log = [{"step": i, "gradient_norm": norm} for i, norm in enumerate(norms)]
    row = {"step": 50, "loss": float("nan"), "gradient_norm": 1.0, "learning_rate": 0.1}
    checkpoint.save(tmp_path, a_state(), a_record(40))
    drawn = Draw(50, np.array([0, 2]), jax.random.wrap_key_data(np.array([0, 1], np.uint32)))
    return str(record_failure(tmp_path, row, log, drawn, ["a", "not this one", "b"], 7))


def test_the_likely_cause_is_the_learning_rate_if_the_gradient_grew(tmp_path):
    message = failure(tmp_path, [1.0] * 20 + [3.0, 12.0, 80.0])
    assert "the steps are probably too large" in message and "step 40 is kept" in message
    assert "learning rate of 0.1" in message and "\n" not in message


def test_the_likely_cause_is_the_images_if_nothing_announced_it(tmp_path):
    assert "look at the images of the step, a, b" in failure(tmp_path, [1.0, 1.2, 0.9] * 10)
    record = json.loads((tmp_path / "failure.json").read_text())
    assert record["loss"] == "nan" and record["examples"] == ["a", "b"] and record["key"] == [0, 1]
    assert record["step"] == 50 and record["last_saved"] == 40 and record["seed"] == 7


def example(labels):
    labels = np.array(labels, np.int32)
    return Example("", labels, labels, labels)


def test_collapse_to_one_class_is_said():
    mixed, ignored = example([[0, 1]]), example([[1, IGNORED]])
    only_cell = np.array([[[0.1, 0.9], [0.4, 0.6]]])
    both = np.array([[[0.1, 0.9], [0.6, 0.4]]])
    names = ["membrane", "cell"]
    assert "gets the class 'cell'" in collapse([mixed], [only_cell], names)
    assert collapse([mixed], [both], names) is None
    assert collapse([mixed, mixed], [only_cell, both], names) is None
    assert collapse([ignored], [only_cell], names) is None, "there is but one class to find"


def test_collapse_is_said_during_training(tiny_config, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("unet_jax.run.fit.collapse", lambda *_: "every pixel gets the class 'cell'")
    fit(tiny_config, tmp_path / "run")
    said = [r.levelname for r in caplog.records if "every pixel gets" in r.getMessage()]
    assert said == ["WARNING"] * 3
    assert "Step 4: every pixel gets the class 'cell'" in caplog.messages
