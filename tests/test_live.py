"""Learning from strokes, without a viewer."""

import jax
import numpy as np
import pytest
from scipy import optimize, special

import unet_jax
from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.errors import InputError, RunFailed
from unet_jax.example import IGNORED, image_sha256
from unet_jax.live import blocks, learning
from unet_jax.live.features import Features
from unet_jax.live.last_layer import LastLayer, Pixels, entropy, fitted
from unet_jax.live.learning import LiveTraining
from unet_jax.live.saving import open_painted, save_painted
from unet_jax.live.strokes import Painted, left_out
from unet_jax.model import Model
from unet_jax.network import UNet, init_params


def model_of(width=3, depth=3, channels=1, classes=2):
    network = UNet(width=width, depth=depth, classes=classes, dropout_rate=0.0)
    return Model.of(network, init_params(jax.random.key(0), network, channels))


@pytest.fixture(scope="module")
def picture():
    """A made-up micrograph, 128 x 128, with its classes."""
    (example,) = synthetic_examples(0, 1, height=128, width=128)
    return example


def strokes_on(labels, *lines):
    """Strokes along rows of an image: (row, first column, end), of the class that lies there."""
    strokes = np.full(labels.shape, IGNORED, np.int32)
    for row, first, end in lines:
        strokes[row, first:end] = labels[row, first:end]
    return strokes


# The last layer


def random_pixels(rng, count=200, width=5, classes=3):
    features = rng.normal(size=(count, width)).astype(np.float32)
    targets = rng.dirichlet(np.ones(classes), count).astype(np.float32)
    return Pixels(features, targets, rng.uniform(0.5, 2, count).astype(np.float32))


def test_entropy_of_two_pixels_by_hand():
    layer = LastLayer(np.float32([[1, -1]]), np.float32([0, 0]))
    pixels = Pixels(np.float32([[0], [1]]), np.float32([[1, 0], [0, 1]]), np.float32([1, 3]))
    of_second = np.log(1 + np.exp(2))
    assert entropy(layer, pixels) == pytest.approx((np.log(2) + 3 * of_second) / 4)
    assert entropy(layer, Pixels(*(x[:0] for x in pixels))) == 0


def test_fitted_layer_equals_that_of_another_method():
    rng = np.random.default_rng(0)
    pixels = random_pixels(rng)
    start = LastLayer(*(rng.normal(size=s).astype(np.float32) for s in ((5, 3), (3,))))
    origin = np.vstack(start).astype(float)

    def loss(flat):
        layer = flat.reshape(6, 3)
        logits = pixels.features @ layer[:-1] + layer[-1]
        each = -(pixels.targets * (logits - special.logsumexp(logits, 1, keepdims=True))).sum(1)
        return pixels.weights @ each / pixels.weights.sum() + 3e-3 * ((layer - origin) ** 2).sum()

    expected = optimize.minimize(loss, origin.ravel(), method="BFGS").x.reshape(6, 3)
    np.testing.assert_allclose(np.vstack(fitted(start, pixels)), expected, atol=2e-3)


def test_layer_that_says_the_targets_already_is_kept():
    rng = np.random.default_rng(1)
    layer = LastLayer(*(rng.normal(size=s).astype(np.float32) for s in ((5, 3), (3,))))
    pixels = random_pixels(rng)
    pixels = pixels._replace(targets=layer.probabilities(pixels.features))
    np.testing.assert_allclose(np.vstack(fitted(layer, pixels)), np.vstack(layer), atol=1e-4)


# Strokes


def test_third_stroke_of_each_class_is_left_out():
    strokes = np.full((20, 100), IGNORED)
    for number in range(8):
        strokes[2, 10 * number : 10 * number + 5] = 0
        strokes[12, 10 * number : 10 * number + 5] = 1
    trained, judged = left_out(strokes, np.zeros((2, 20, 100), bool))
    np.testing.assert_array_equal(trained | judged, strokes != IGNORED)
    assert not (trained & judged).any()
    for row in (2, 12):
        assert judged[row, :80:10].tolist() == [False, False, True, False] * 2


def test_a_stroke_keeps_its_role_while_it_grows():
    strokes = np.full((20, 100), IGNORED)
    for column in (0, 20, 40):
        strokes[2, column : column + 5] = 1
    before = left_out(strokes, np.zeros((2, 20, 100), bool))
    assert before[1].sum() == 5
    strokes[2, 40:55] = 1  # the one left out
    strokes[10, 0:5] = 1  # a new one
    trained, judged = left_out(strokes, before)
    assert judged.sum() == 15 and judged[2, 40:55].all()
    assert trained[10, :5].all()


def test_a_wide_area_is_divided():
    strokes = np.zeros((512, 512), int)
    trained, judged = left_out(strokes, np.zeros((2, 512, 512), bool))
    assert judged.mean() == 1 / 4 and trained.mean() == 3 / 4


def test_no_stroke():
    none = np.zeros((2, 4, 4), bool)
    assert not left_out(np.full((4, 4), IGNORED), none).any()


# Features


@pytest.mark.parametrize("channels", [1, 2])
def test_features_and_last_layer_give_what_the_network_gives(channels):
    model = model_of(channels=channels)
    image = np.random.default_rng(0).normal(size=(300, 270, channels)).astype(np.float32)
    image = image if channels > 1 else image[..., 0]
    features = Features(model)
    layer = LastLayer(*(np.asarray(model.params["classes"][k])[0] for k in ("kernel", "bias")))
    layer = layer._replace(kernel=layer.kernel[0, 0])
    expected = unet_jax.predict_tiled(model, image)
    found = layer.probabilities(features.part(0, image, slice(0, 300), slice(0, 270)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    part = layer.probabilities(features.part(0, image, slice(250, 299), slice(3, 260)))
    np.testing.assert_array_equal(part, found[250:299, 3:260])
    pixels = np.array([[0, 0], [299, 269], [256, 255], [10, 260]])
    np.testing.assert_array_equal(
        layer.probabilities(features.at(0, image, pixels)), found[tuple(pixels.T)]
    )


def test_features_of_a_network_without_expanding_path():
    model = model_of(depth=1)
    image = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    found = Features(model).part(0, image, slice(0, 40), slice(0, 30))
    kernel, bias = (np.asarray(model.params["classes"][k])[0] for k in ("kernel", "bias"))
    probabilities = LastLayer(kernel[0, 0], bias).probabilities(found)
    np.testing.assert_allclose(probabilities, unet_jax.predict_tiled(model, image), atol=1e-5)


# Learning


LINES = [(row, 4, 124) for row in range(4, 124, 12)]


def test_what_is_shown_never_gets_worse_and_learns(picture, monkeypatch):
    monkeypatch.setattr(learning, "_STEPS_TO_TRIAL", 10)
    monkeypatch.setattr(learning, "_LEARNING_RATE", 3e-3)
    live = LiveTraining(model_of())
    whole = slice(0, 128), slice(0, 128)

    def error():
        found = live.probabilities("a", picture.image, *whole).argmax(-1)
        return (found != picture.labels).mean()

    before = error()
    live.paint({"a": Painted(picture.image, strokes_on(picture.labels, *LINES))})
    entropies, updates = [live.left_out_entropy()], 0
    while live.steps < 80:
        updates += live.work()
        entropies.append(live.left_out_entropy())
    assert updates > 1
    assert (np.diff(entropies) <= 0).all() and entropies[-1] < entropies[0]
    shown = live.probabilities("a", picture.image, *whole)
    expected = unet_jax.predict_tiled(live.shown, picture.image)
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    assert error() < before


def test_the_first_strokes_change_the_last_layer_only(picture, monkeypatch):
    monkeypatch.setattr(learning, "_TRUSTED", -1)
    live = LiveTraining(model_of())
    before = live.shown
    live.paint({"a": Painted(picture.image, strokes_on(picture.labels, (20, 10, 30)))})
    assert live.work()
    changed = [n for n in before.params if not same(before.params[n], live.shown.params[n])]
    assert changed == ["classes"]


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_strokes_of_one_class_alone_are_not_trained_on(picture, monkeypatch, is_trusted):
    monkeypatch.setattr(learning, "_TRUSTED", -1 if is_trusted else 1)
    live = LiveTraining(model_of())
    strokes = np.full((128, 128), IGNORED, np.int32)
    strokes[10, 10:50] = 1
    live.paint({"a": Painted(picture.image, strokes)})
    assert live.work() == is_trusted
    assert not live.work() and live.steps == 0


def test_other_classes_than_those_of_the_network_wait_for_strokes_of_each(picture):
    live = LiveTraining(model_of(), classes=3)
    strokes = np.full((128, 128), IGNORED, np.int32)
    strokes[10, 10:50], strokes[30, 10:50] = 0, 1
    live.paint({"a": Painted(picture.image, strokes)})
    assert not live.work() and not live.is_ready
    strokes[50, 10:50] = 2
    live.paint({"a": Painted(picture.image, strokes)})
    assert live.work() and live.is_ready
    assert live.shown.network.classes == 3
    part = live.probabilities("a", picture.image, slice(0, 60), slice(0, 60))
    assert part.shape == (60, 60, 3)
    np.testing.assert_allclose(part.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("is_trusted", [True, False])
def test_weights_half_way_from_a_trusted_network_are_tried(picture, monkeypatch, is_trusted):
    monkeypatch.setattr(learning, "_TRUSTED", -1 if is_trusted else 1)
    monkeypatch.setattr(learning, "_STEPS_TO_TRIAL", 10)
    start, tried = model_of(), []
    live = LiveTraining(start)
    monkeypatch.setattr(live, "_improve", lambda body: tried.append(body.model.params))
    live.paint({"a": Painted(picture.image, strokes_on(picture.labels, *LINES))})
    while live.steps < 10:
        live.work()
    expected = jax.tree.map(lambda x: np.asarray(x)[None], live._state.average)
    if is_trusted:
        expected = jax.tree.map(lambda x, y: (x + y) / 2, start.params, expected)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), tried[-1], expected)


def test_trials_are_rarer_the_longer_nothing_is_painted(picture, monkeypatch):
    monkeypatch.setattr(learning, "_STEPS_TO_TRIAL", 10)
    live, steps = LiveTraining(model_of()), []
    monkeypatch.setattr(live, "_improve", lambda _: steps.append(live.steps))
    painted = {"a": Painted(picture.image, strokes_on(picture.labels, *LINES))}
    live.paint(painted)
    while live.steps < 80:
        live.work()
    live.paint(painted)
    while live.steps < 120:
        live.work()
    assert steps == [0, 10, 30, 70, 80, 90, 110]


def test_training_goes_on_when_strokes_show_that_the_network_can_be_trusted(picture, monkeypatch):
    live = LiveTraining(model_of())
    painted = {"a": Painted(picture.image, strokes_on(picture.labels, *LINES))}
    for trusted, steps in ((1, 10), (-1, 20)):
        monkeypatch.setattr(learning, "_TRUSTED", trusted)
        live.paint(painted)
        while live.steps < steps:
            live.work()
        assert live._trusts_start == (trusted < 0)
    assert int(live._state.step) == 20


def test_strokes_that_are_removed_no_longer_count(picture):
    live = LiveTraining(model_of())
    live.paint({"a": Painted(picture.image, strokes_on(picture.labels, *LINES))})
    live.work()
    live.paint({})
    assert not live.work() and live.left_out_entropy() == 0


def test_a_plane_with_left_out_strokes_alone(picture):
    """The third stroke of a class is left out; the first two are erased."""
    live = LiveTraining(model_of())
    first = Painted(picture.image, strokes_on(picture.labels, *LINES))
    second = np.full((128, 128), IGNORED, np.int32)
    for row in (10, 30, 50):
        second[row, 10:50] = 1
        live.paint({"a": first, "b": Painted(picture.image, second.copy())})
    second[:40] = IGNORED
    live.paint({"a": first, "b": Painted(picture.image, second)})
    assert live._roles["b"][learning._LEFT_OUT].any()
    assert not live._roles["b"][learning._TRAIN].any()
    while not live.steps:
        live.work()


def test_same_strokes_give_the_same_network(picture, monkeypatch):
    monkeypatch.setattr(learning, "_STEPS_TO_TRIAL", 10)
    shown = []
    for _ in range(2):
        live = LiveTraining(model_of())
        live.paint({"a": Painted(picture.image, strokes_on(picture.labels, *LINES))})
        while live.steps < 20:
            live.work()
        shown.append(live.shown.sha256())
    assert shown[0] == shown[1]


def test_an_ensemble_and_another_scale_are_refused():
    model = model_of()
    two = jax.tree.map(lambda x: np.repeat(x, 2, 0), model.params)
    with pytest.raises(InputError, match="cross-validation"):
        LiveTraining(Model(model.network, two, 1))
    with pytest.raises(InputError, match=r"at 0\.5 times their resolution"):
        LiveTraining(Model(model.network, model.params, 1, scale=0.5))


def test_a_plane_that_is_annotated_as_a_whole(picture, monkeypatch):
    monkeypatch.setattr(learning, "_TRUSTED", -1)
    monkeypatch.setattr(learning, "_STEPS_TO_TRIAL", 10)
    live = LiveTraining(model_of())
    live.paint({"a": Painted(picture.image, picture.labels)})
    while live.steps < 10:
        live.work()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(live.shown.params))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(live._state.params))
    assert live.left_out_entropy() > 0


def test_of_many_strokes_some_of_each_class_count(picture, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST", 8)
    monkeypatch.setattr(learning, "_TRUSTED", -1)
    live, painted = LiveTraining(model_of()), {}
    for name in range(12):
        strokes = np.full((128, 128), IGNORED, np.int32)
        strokes[10:60:10, 10:50] = 1 if name == 7 else 0
        painted[name] = Painted(picture.image, strokes)
    live.paint(painted)
    assert live.work()
    assert 7 in live._blocks and 2 < len(live._blocks) <= 8
    for role in (learning._TRAIN, learning._LEFT_OUT):
        pixels = live._pixels(live._body, role)
        assert {*pixels.targets.argmax(-1)} == {0, 1}
        # The first class counts as much as the network finds of it, however much is painted.
        share = pixels.weights[pixels.targets[:, 0] == 1].sum() / pixels.weights.sum()
        assert share == pytest.approx(live._shares[0] / live._shares.sum(), abs=1e-5)
    assert sum(map(len, live._sampled.values())) == pytest.approx(2000, abs=8)


# Saving


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_saved_network_predicts_the_same_and_is_opened_again(tmp_path, channels):
    model = model_of(channels=channels)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (70, 60, channels)).astype(np.uint8).squeeze()
    strokes = np.full((70, 60), IGNORED, np.int32)
    strokes[5, 5:20], strokes[15, 5:20] = 0, 1
    painted = {"cells": Painted(image, strokes)}
    folder = tmp_path / "run"
    save_painted(folder, model, painted, ("background", "nucleus"), step=0)
    with pytest.raises(InputError, match="is not empty"):
        save_painted(folder, model, painted, ("background", "nucleus"), step=70)
    other = {"other": painted["cells"]}
    for shown, step in ((other, 90), (painted, 70)):
        save_painted(folder, model, shown, ("background", "nucleus"), step=step, replace=True)
    assert [file.name for file in (folder / "images").iterdir()] == ["cells.tif"]
    opened, again = open_painted(folder)
    assert opened.class_names == ("background", "nucleus") and opened.record.step == 70
    assert opened.sha256() == model.sha256()
    np.testing.assert_array_equal(again["cells"].image, image)
    np.testing.assert_array_equal(again["cells"].strokes, strokes)

    with pytest.raises(InputError, match="has no test images; give --images and --labels"):
        unet_jax.evaluate(folder)

    tifffile = pytest.importorskip("tifffile")
    unet_jax.predict_files(
        folder, images=folder / "images", output=tmp_path / "out", kinds=["probabilities"]
    )
    found = tifffile.imread(tmp_path / "out" / "cells_probabilities.tif")
    expected = unet_jax.predict_tiled(model, image)
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint64, np.float16, np.int16, np.float64])
def test_images_of_any_numbers_are_saved(tmp_path, dtype):
    image = np.arange(70 * 60).reshape(70, 60).astype(dtype)
    strokes = np.zeros((70, 60), np.int32)
    save_painted(tmp_path / "run", model_of(), {"a": Painted(image, strokes)}, ("a", "b"), step=0)
    _, painted = open_painted(tmp_path / "run")
    np.testing.assert_array_equal(painted["a"].image, image)
    training = unet_jax.load(tmp_path / "run").record.training
    assert training.images == {"a": image_sha256(painted["a"].image)}


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    def fail(*_):
        raise RunFailed("the disk is full")

    model = model_of()
    save_painted(tmp_path, model, {}, ("a", "b"), step=5)
    monkeypatch.setattr("unet_jax.checkpoint.save", fail)
    with pytest.raises(RunFailed):
        save_painted(tmp_path, model, {}, ("a", "b"), step=7, replace=True)
    assert unet_jax.load(tmp_path).sha256() == model.sha256()


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_of_something_else_is_left_alone(tmp_path, replace):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        save_painted(tmp_path, model_of(), {}, ("a", "b"), step=1, replace=replace)
    with pytest.raises(InputError, match="no network with the strokes"):
        open_painted(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
