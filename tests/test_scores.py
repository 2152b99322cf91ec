import numpy as np
import pytest

from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.example import IGNORED, Example
from unet_jax.metrics import pixel_error, rand_error
from unet_jax.scores import baselines, class_scores, em_errors


def example(labels, image=None):
    labels = np.asarray(labels, np.int32)
    image = np.zeros(labels.shape, np.uint8) if image is None else image
    return Example("x", image, labels, np.maximum(labels, 0))


def test_em_errors_equal_the_metrics_of_the_stack():
    rng = np.random.default_rng(0)
    examples = synthetic_examples(0, 3, height=40, width=50)
    cell = [rng.random((40, 50)).astype(np.float32) for _ in examples]
    errors = em_errors(examples, cell)
    truth = np.stack([e.labels for e in examples])
    for name, metric in (("pixel_error", pixel_error), ("rand_error", rand_error)):
        score = metric(truth, np.stack(cell))
        assert errors[name] == {"value": score.value, "threshold": score.threshold}


def test_images_of_different_sizes_score_as_if_they_were_filled_up_with_membrane():
    rng = np.random.default_rng(0)
    examples = [
        *synthetic_examples(0, 1, height=40, width=30),
        *synthetic_examples(1, 1, height=20, width=50),
    ]
    cell = [rng.random(e.labels.shape).astype(np.float32) for e in examples]
    counts = np.zeros(3)  # by hand: TP, predicted and true pixels at the threshold 0.5
    for e, p in zip(examples, cell, strict=True):
        counts += np.sum((p > 0.5) & (e.labels > 0)), np.sum(p > 0.5), np.sum(e.labels > 0)
    at_half = 1 - 2 * counts[0] / (counts[1] + counts[2])
    assert em_errors(examples, cell)["pixel_error"]["value"] <= at_half
    exact = [e.labels.astype(float) for e in examples]
    assert em_errors(examples, exact)["pixel_error"]["value"] == 0
    assert em_errors(examples, exact)["rand_error"]["value"] == 0


def test_ignored_pixels_do_not_count():
    truth = example([[1, 1, 0, IGNORED, IGNORED]])
    good = [np.array([[1.0, 1.0, 0.0, 1.0, 0.0]])]
    assert em_errors([truth], good)["pixel_error"]["value"] == 0


def test_class_scores():
    truth = example([[0, 1, 2, 2, IGNORED]])
    probabilities = np.eye(4)[[0, 1, 1, 2, 0]][None]
    scores = class_scores([truth], [probabilities], ["a", "b", "c", "d"])
    assert scores["intersection_over_union"] == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert scores["mean_iou"] == {"value": pytest.approx(2 / 3)}
    # Rows are the true classes.
    confusion = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert scores["confusion"] == confusion
    nothing = class_scores([example([[IGNORED]])], [np.ones((1, 1, 2))], ["a", "b"])
    assert nothing["mean_iou"] == {"value": None} and not nothing["intersection_over_union"]


def test_baselines_on_a_picture_where_they_are_known():
    # Cells are exactly the bright half: the grey value is perfect, but for the blurred border.
    labels = np.zeros((40, 40), np.int32)
    labels[:, 20:] = 1
    bright = example(labels, (labels * 100 + 50).astype(np.uint8))
    dark = example(labels, (200 - labels * 100).astype(np.uint8))
    for picture in (bright, dark):
        found = baselines([picture])
        assert found["one class everywhere"]["pixel_error"]["value"] == pytest.approx(1 / 3)
        assert found["blurred grey value"]["pixel_error"]["value"] < 0.01
    constant = baselines([example(labels)])["blurred grey value"]
    assert constant["pixel_error"]["value"] == pytest.approx(1 / 3)


def test_baselines_take_several_channels():
    labels = np.zeros((20, 30), np.int32)
    labels[:10] = 1
    image = np.stack([labels * 7.0, labels * 9.0], axis=-1)
    found = baselines([example(labels, image)])
    assert found["blurred grey value"]["pixel_error"]["value"] < 0.05
