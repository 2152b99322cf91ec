import dataclasses
import itertools
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_checkpoint import same_bits
from unet_jax import InputError, load, predict_tiled, training_images, training_loop
from unet_jax.configuration import Configuration, TrainSettings, read_configuration
from unet_jax.data.splits import read_splits
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.network import UNet
from unet_jax.optimiser import OptimiserSettings, sgd
from unet_jax.run.fit import fit
from unet_jax.run.log import read_log
from unet_jax.training_loop import train

CONFIGURATION = Configuration(
    model=UNet(width=2, depth=2),
    optimiser=OptimiserSettings(warmup_steps=2),
    train=TrainSettings(steps=4, tile_side=44),
)


@pytest.fixture(scope="module")
def examples():
    return synthetic_examples(0, 3, height=60, width=70)


def metrics(steps):
    """What each step tells, as numbers."""
    return [{"step": p.step} | {name: float(x) for name, x in p.metrics.items()} for p in steps]


@pytest.fixture(scope="module")
def expected(examples):
    """The metrics of all steps."""
    return metrics(train(examples, CONFIGURATION))


def test_it_trains_as_a_run_in_a_folder_does(tiny_config, tmp_path):
    """Bit for bit, also from a state in the middle."""
    fit(tiny_config, tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    rows = [{k: v for k, v in r.items() if k != "seconds"} for r in log if "loss" in r]
    configuration = read_configuration(tiny_config)
    examples = read_splits(configuration.data, 2)["train"]
    found = []
    for progress in train(examples, configuration):
        found += metrics([progress])
        if progress.step == 5:
            middle = jax.tree.map(jnp.array, progress.state)
    assert found == rows and len(rows) == 12
    assert same_bits(progress.model().params, load(tmp_path / "run", "latest").params)
    assert metrics(train(examples, configuration, state=middle)) == rows[5:]


def test_left_half_way_it_gives_a_model_that_later_steps_leave_as_it_is(examples):
    steps = train(examples, CONFIGURATION)
    for progress in steps:
        if progress.step == 2:
            break
    model = progress.model()
    probabilities = predict_tiled(model, examples[0].image)
    assert probabilities.shape == (60, 70, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    later = next(steps)
    assert later.step == 3 and not same_bits(later.model().params, model.params)
    assert np.array_equal(predict_tiled(model, examples[0].image), probabilities)


def test_steps_that_are_done_at_once_end_where_something_is_due(examples, expected):
    configuration = replace(CONFIGURATION, train=replace(CONFIGURATION.train, steps=9))
    one_by_one = list(train(examples, configuration))
    whole, parts = [], []
    often = replace(configuration, train=replace(configuration.train, validate_every=3))
    for found, settings in ((whole, configuration), (parts, often)):
        found += list(train(examples, settings, steps_at_once=4))
    assert [list(p.steps.numbers) for p in whole] == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]
    assert [list(p.steps.numbers) for p in parts] == [[1, 2, 3], [4], [5, 6], [7, 8], [9]]
    assert [p.step for p in whole] == [4, 8, 9]
    rows, divided, single = (
        [row for p in progress for row in p.steps.metrics()]
        for progress in (whole, parts, one_by_one)
    )
    assert rows == divided and len(rows) == 9 and rows[3] == whole[0].metrics
    assert same_bits(whole[-1].state, parts[-1].state)
    for found, wanted in zip(rows, single, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)


def test_it_trains_in_any_thread(examples, expected):
    found = []
    thread = threading.Thread(target=lambda: found.extend(metrics(train(examples, CONFIGURATION))))
    thread.start()
    thread.join()
    assert found == expected


@pytest.mark.parametrize("optimiser", [sgd(OptimiserSettings(warmup_steps=2)), optax.adam(1e-3)])
def test_another_optimiser_has_no_last_step(examples, optimiser):
    beyond = CONFIGURATION.train.steps + 3
    steps = train(examples, CONFIGURATION, optimiser=optimiser)
    found = metrics(itertools.islice(steps, beyond))
    assert [m["step"] for m in found] == list(range(1, beyond + 1))
    assert all(np.isfinite(m["loss"]) for m in found)
    tells = hasattr(optimiser.init({}), "hyperparams")
    assert all(np.isfinite(m["learning_rate"]) == tells for m in found)
    assert next(steps).step == beyond + 1


def test_a_class_weight_replaces_that_of_the_examples(examples, expected):
    weight = np.float32([0, 0])  # what is left of the weights is that of the borders
    first = next(train(examples, CONFIGURATION, class_weight=weight))
    assert 0 < first.metrics["loss"] < expected[0]["loss"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {"labels": e.labels[1:]}, "bad: labels and instances are (59, 70) and (60, 70)"),
        (lambda e: {"instances": e.instances.T}, "expected (60, 70) like the image"),
        (
            lambda e: {"image": np.stack([e.image] * 3, -1)},
            "bad: has 3 channel(s), expected 1 as in picture 0",
        ),
        (lambda e: {"labels": e.labels > 0}, "bad: labels or instances are bool, expected integ"),
        (lambda e: {"instances": 1.0 * e.instances}, "are float"),
        (lambda e: {"labels": 2 * e.labels}, "bad: holds class 2, but the network has 2"),
        (lambda e: {"labels": e.labels - 3}, "bad: holds class -3, but the network has 2"),
        (lambda e: {"image": np.full((60, 70), np.nan)}, "bad: holds NaN, infinite or huge pixels"),
    ],
)
@pytest.mark.parametrize("arrays", [np, jnp])
def test_examples_that_do_not_fit_are_told_before_the_first_step(examples, arrays, change, message):
    bad = examples[2]._replace(name="bad", **change(examples[2]))
    bad = bad._replace(
        **{name: arrays.asarray(a) for name, a in bad._asdict().items() if name != "name"}
    )
    with pytest.raises(InputError) as refusal:
        train([*examples[:2], bad], CONFIGURATION)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_no_examples_are_refused():
    with pytest.raises(InputError, match=r"^There are no examples to train on\.$"):
        train([], CONFIGURATION)


def test_another_run_to_start_from_asks_for_its_state(examples):
    settings = dataclasses.replace(CONFIGURATION.train, start_from="runs/other")
    configuration = dataclasses.replace(CONFIGURATION, train=settings)
    with pytest.raises(InputError, match="start_from, give a state"):
        train(examples, configuration)


@pytest.mark.parametrize(
    "convert",
    [jnp.asarray, lambda a: a.astype(np.int64), lambda a: a.astype(np.int16)],
    ids=["JAX", "int64", "int16"],
)
def test_arrays_of_other_types_train_the_same(examples, expected, convert):
    others = [
        e._replace(**{k: convert(v) for k, v in e._asdict().items() if k != "name"})
        for e in examples
    ]
    assert metrics(train(others, CONFIGURATION)) == expected


def test_images_on_the_host_train_to_the_same_bits_one_step_ahead(examples, expected, monkeypatch):
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    drawn, draw = [], training_loop.draw

    def noting(key, step, *rest):
        drawn.append(step)
        return draw(key, step, *rest)

    monkeypatch.setattr(training_loop, "draw", noting)
    found, threads = [], threading.active_count()
    for progress in train(examples, CONFIGURATION, steps_at_once=3):
        found += metrics([progress])
        assert drawn == list(range(1, min(progress.step + 1, 4) + 1))
    assert found == expected
    assert threading.active_count() == threads


@pytest.mark.parametrize("end", ["closed", "left", "never begun"])
def test_training_that_is_given_up_leaves_no_thread(examples, monkeypatch, end):
    monkeypatch.setattr(training_images, "device_memory_bytes", lambda: 1000)
    threads = threading.active_count()
    steps = train(examples, CONFIGURATION)
    assert threading.active_count() == threads
    if end != "never begun":
        next(steps)
        assert threading.active_count() == threads + 1
    if end == "closed":
        steps.close()
    else:
        del steps
    assert threading.active_count() == threads
