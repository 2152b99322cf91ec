import hashlib
import json
import logging
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.reliability.conftest import ROOT
from tests.test_augmentation import OFF
from tests.test_checkpoint import FIELDS, a_record, a_state, a_training, same_bits
from tests.test_fit import interrupt_at, latest_state, log_without_time
from tests.test_train_step import SCHEDULE, STEPS, a_batch
from unet_jax import checkpoint, load
from unet_jax.configuration import Configuration, TrainSettings
from unet_jax.errors import InputError
from unet_jax.evaluation.evaluate import evaluate
from unet_jax.network import UNet, contracting_path
from unet_jax.optimiser import sgd
from unet_jax.run.fit import fit
from unet_jax.run.start_from import first_state
from unet_jax.run_record import StartedFrom, Training
from unet_jax.sources import Isbi2012
from unet_jax.train_step import create_train_state, make_train_step

NETWORK = UNet(**FIELDS)


@pytest.fixture
def source(tmp_path):
    """A run whose best step is 4 and whose latest is 6."""
    for step, loss in [(4, 0.3), (6, 0.4)]:
        checkpoint.save(tmp_path / "source", a_state(step), a_record(step, loss))
    return tmp_path / "source"


def random_state(network=NETWORK, channels=1):
    optimiser = sgd(SCHEDULE, steps=STEPS)
    return create_train_state(jax.random.key(9), network, optimiser, channels)


def begin(source, state, *, network=NETWORK, channels=1, scale=1.0, freeze=False, held_out=None):
    """What a run that has not been saved yet begins with."""
    configuration = Configuration(
        model=network,
        class_names=tuple("abc"[: network.classes]),
        data=Isbi2012(scale=scale),
        train=TrainSettings(start_from=str(source), freeze_contracting_path=freeze),
    )
    new = source / "there is no such run"
    return first_state(new, state, configuration, channels=channels, held_out=held_out or {})


def test_everything_is_taken_over_from_the_best_step(source, caplog):
    caplog.set_level(logging.INFO, "unet_jax")
    random = random_state()
    state, record = begin(source, random)
    assert same_bits(state.params, a_state(4).params)
    assert same_bits(state.opt_state, random.opt_state) and state.step == 0
    manifest = source / "checkpoints" / "000004" / "sha256.json"
    assert record == StartedFrom(
        checkpoint=str(source),
        step=4,
        manifest_sha256=hashlib.sha256(manifest.read_bytes()).hexdigest(),
        new_layers=[],
        seen=[],
    )
    assert caplog.messages == [f"Starting from {source}, step 4: 8 layers are taken over."]
    assert state.average is None
    averaged, _ = begin(source, random.replace(average=random.params))
    assert same_bits(averaged.average, state.params), "it begins with them too"


@pytest.mark.parametrize(
    ("changed", "layer", "reason"),
    [
        ({"network": NETWORK.clone(classes=3)}, "classes", "it has 2 classes, this run has 3"),
        ({"channels": 3}, "contracting1_conv1", "it takes 1 channel(s), these images have 3"),
    ],
)
def test_a_layer_that_does_not_fit_begins_at_random_and_is_named(
    source, caplog, changed, layer, reason
):
    caplog.set_level(logging.INFO, "unet_jax")
    random = random_state(**changed)
    state, record = begin(source, random, **changed)
    assert record.new_layers == [layer]
    assert caplog.messages == [
        f"Starting from {source}, step 4: 7 layers are taken over.",
        f"  {layer} starts with random weights: {reason}.",
    ]
    expected = a_state(4).params | {layer: random.params[layer]}
    assert same_bits(state.params, expected)


def test_all_layers_of_a_network_are_either_taken_over_or_named():
    """By shapes alone: nothing but these two layers depends on channels and classes."""
    from unet_jax.network import init_params

    def shapes(classes, channels):
        network = UNet(width=2, depth=4, classes=classes)
        params = jax.eval_shape(lambda key: init_params(key, network, channels), jax.random.key(0))
        return {name: jax.tree.map(lambda x: x.shape, layer) for name, layer in params.items()}

    before, after = shapes(2, 1), shapes(5, 3)
    differ = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys() and differ == {"contracting1_conv1", "classes"}


@pytest.mark.parametrize("changed", [{"width": 4}, {"depth": 3}])
def test_another_width_or_depth_is_refused(source, changed):
    with pytest.raises(InputError) as refusal:
        begin(source, None, network=NETWORK.clone(**changed))
    (line,) = refusal.value.args
    assert f"{source}: its network has width 2 and depth 2, but this run's has" in line
    assert "give --config.model.width=2 --config.model.depth=2" in line


def test_a_cross_validation_is_no_single_network(tmp_path):
    training = Training(
        config=Configuration(model=NETWORK),
        class_weights=[1.0, 1.0],
        splits={"train": [], "validation": [], "test": []},
        data={},
        images={},
        started_from=None,
        fold=0,
        folds=2,
        command=None,
        versions={"unet-jax": "0.1.0"},
    )
    for fold in range(2):
        record = replace(a_record(4), training=replace(training, fold=fold))
        checkpoint.save(tmp_path / "five" / f"fold{fold}", a_state(fold), record)
    with pytest.raises(InputError, match="start from one of them, such as .*fold0"):
        begin(tmp_path / "five", None)
    state, record = begin(tmp_path / "five" / "fold1", random_state())
    assert same_bits(state.params, a_state(1).params) and record.step == 4


def test_a_first_convolution_at_random_cannot_be_frozen(source):
    with pytest.raises(InputError, match="contracting1_conv1 starts with random weights"):
        begin(source, None, channels=3, freeze=True)


def test_another_scale_is_told(source, caplog):
    caplog.set_level(logging.INFO, "unet_jax")
    begin(source, random_state(), scale=0.5)
    assert "at 1 times the resolution of its images, this run uses 0.5" in caplog.messages[-1]


def test_an_image_seen_with_another_mask_is_told(tmp_path, caplog):
    caplog.set_level(logging.INFO, "unet_jax")
    training = replace(a_training(NETWORK), images={"picture 0": "1" * 64, "picture 2": "2" * 64})
    checkpoint.save(tmp_path, a_state(4), a_record(4, 0.3, training=training))
    held_out = {"a": {"3" * 64, "1" * 64}, "b": {"4" * 64, "2" * 64}}
    _, started_from = begin(tmp_path, random_state(), held_out=held_out)
    assert started_from.seen == ["a"]
    assert "it has already seen 1 of the 2 images" in caplog.messages[-1]


def test_a_frozen_step_is_a_plain_one_without_the_contracting_path():
    optimiser = sgd(SCHEDULE, steps=STEPS)
    settings = dict(tile_side=36, augmentation=OFF)
    plain_step = make_train_step(NETWORK, optimiser, **settings)
    frozen_step = make_train_step(NETWORK, optimiser, **settings, freeze_contracting_path=True)

    # The second step is the first one that moves: the learning rate warms up from 0.
    batch, key = a_batch(), jax.random.key(1)
    plain, frozen = random_state(), random_state()
    for _ in range(2):
        plain, plain_metrics = plain_step(plain, batch, key)
        frozen, metrics = frozen_step(frozen, batch, key)
    before = random_state().params
    assert same_bits(contracting_path(frozen.params), contracting_path(before))
    for name, layer in before.items():
        moved = not same_bits(frozen.params[name], layer)
        assert moved == (name not in contracting_path(before))
        if moved:
            for key, x in frozen.params[name].items():
                np.testing.assert_allclose(x, plain.params[name][key], rtol=1e-4, atol=1e-7)
    assert metrics["loss"] == pytest.approx(float(plain_metrics["loss"]), rel=1e-5)
    assert 0 < metrics["gradient_norm"] < plain_metrics["gradient_norm"]
    assert frozen_step._cache_size() == 1

    # Momentum of steps that were not frozen does not move it either.
    before = jax.tree.map(np.array, contracting_path(plain.params))
    after, _ = frozen_step(plain, batch, key=jax.random.key(2))
    assert same_bits(contracting_path(after.params), before)


def test_interrupted_and_without_its_source_it_ends_with_the_same_bits(
    tiny_config, source, tmp_path, monkeypatch
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    begun = load(source).params
    tiny_config.train.start_from = str(source)
    tiny_config.train.freeze_contracting_path = True
    assert fit(tiny_config, whole).status == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        assert fit(tiny_config, parts).status == 130
    shutil.rmtree(source)
    assert fit(tiny_config, parts).status == 0
    assert log_without_time(parts) == log_without_time(whole)
    (step, params), (other_step, other_params) = latest_state(whole), latest_state(parts)
    assert step == other_step == 12 and same_bits(params, other_params)
    assert same_bits(contracting_path(params), contracting_path(begun))
    assert not same_bits(params["classes"], begun["classes"])
    records = [load(folder, "latest").record.training.started_from for folder in (whole, parts)]
    assert records[0] == records[1] and records[0].checkpoint == str(source)


def test_the_report_says_where_the_run_started_from(tiny_config, tmp_path, caplog):
    caplog.set_level(logging.INFO, "unet_jax")
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, tmp_path / "source")
    tiny_config.train.start_from = str(tmp_path / "source")
    tiny_config.train.freeze_contracting_path = True
    # One image that the source was trained on is held out now.
    tiny_config.data.train, tiny_config.data.validation = (0, 2), (2, 4)
    assert fit(tiny_config, tmp_path / "run").status == 0
    assert (
        "it has already seen 2 of the 4 images that this run validates or tests on (such as "
        "picture 2" in caplog.text
    )
    evaluate(tmp_path / "run")
    folder = tmp_path / "run" / "evaluation"
    record = json.loads((folder / "report.json").read_text())["training"]["started_from"]
    assert record["step"] == 4 and record["seen"] == ["picture 2", "picture 3"]
    page = " ".join((folder / "report.html").read_text(encoding="utf-8").split())
    assert record["manifest_sha256"] in page
    assert f"a network trained earlier (step 4 of {tmp_path / 'source'})." in page
    assert "Of the validation and test images of this run, 2 had been used" in page
    assert "The contracting path was not trained any further." in page


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freeze_contracting_path": True}, "must be False where config.train.start_from is empty"),
        ({"freeze_contracting_path": 1}, "freeze_contracting_path must be True or False, not 1"),
        (
            {"start_from": 7},
            "start_from must be the --workdir of a run, or nuclei or membranes, or empty",
        ),
        ({"start_from": "nowhere"}, "nowhere: no checkpoint in this folder; give the --workdir"),
    ],
)
def test_bad_values_are_refused_in_one_line(tiny_config, tmp_path, values, message):
    with tiny_config.ignore_type():
        tiny_config.train.update(values)
    with pytest.raises(InputError, match=message) as refusal:
        fit(tiny_config, tmp_path / "run")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_goes_on_and_can_be_started_from(tiny_config, tmp_path):
    """Its configuration has no keys for fine-tuning."""
    old = tmp_path / "old"
    tiny_config.train.steps = tiny_config.train.validate_every = 4
    fit(tiny_config, old)
    folder = old / "checkpoints" / "000004"
    record = json.loads((folder / "checkpoint.json").read_text())
    del record["started_from"]
    del record["config"]["train"]["start_from"]
    del record["config"]["train"]["freeze_contracting_path"]
    (folder / "checkpoint.json").write_text(json.dumps(record))
    manifest = json.loads((folder / "sha256.json").read_text())
    digest = hashlib.sha256((folder / "checkpoint.json").read_bytes()).hexdigest()
    manifest["checkpoint.json"] = digest
    (folder / "sha256.json").write_text(json.dumps(manifest))

    tiny_config.train.steps = 8
    assert fit(tiny_config, old).status == 0
    assert checkpoint.saved_steps(old)[-1] == 8

    (golden,) = (ROOT / "tests" / "reliability" / "golden").glob("0.1.0")
    train = load(golden / "run").record.training.config.train
    assert (train.start_from, train.freeze_contracting_path) == ("", False)
    tiny_config.train.start_from = str(golden / "run")
    assert fit(tiny_config, tmp_path / "new").status == 0
