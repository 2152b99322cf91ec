from functools import partial

import numpy as np
import pytest

from unet_jax.data.synthetic_em import synthetic_examples
from unet_jax.example import IGNORED, Example
from unet_jax.metrics import pixel_error, rand_error, v_info, v_rand, warping_error
from unet_jax.metrics.scores import (
    baselines,
    class_scores,
    em_counts,
    em_errors,
    em_scores,
    em_values,
)
from unet_jax.run import validation


def example(labels, image=None):
    labels = np.asarray(labels, np.int32)
    image = np.zeros(labels.shape, np.uint8) if image is None else image
    return Example("x", image, labels, np.maximum(labels, 0))


def some_examples(sizes=((40, 50), (70, 50), (44, 44), (50, 50))):
    """Cells with a seventh of the pixels ignored, and made-up probabilities."""
    rng = np.random.default_rng(0)
    examples, cell = [], []
    for i, (height, width) in enumerate(sizes):
        (one,) = synthetic_examples(i, 1, height=height, width=width)
        hole = rng.random((height, width)) < 1 / 7
        examples.append(one._replace(labels=np.where(hole, IGNORED, one.labels)))
        noise = rng.random((height, width))
        cell.append((0.45 * (one.labels > 0) + 0.55 * noise).astype(np.float32))
    return examples, cell


EMPTY = np.zeros((30, 35), np.int32)
METRICS = {
    "pixel_error": pixel_error,
    "rand_error": rand_error,
    "warping_error": warping_error,
    "warping_error_2016": partial(warping_error, setting="2016"),
    "v_rand": v_rand,
    "v_info": v_info,
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "rows", [slice(None), slice(0, 1), slice(1, 3)], ids=["all", "each image", "each fold"]
)
def test_rows_of_the_table_score_as_the_metric_of_their_images(metric, rows):
    examples, cell = some_examples()
    table = em_counts(examples, cell)
    score = METRICS[metric]([e.labels for e in examples[rows]], cell[rows])
    assert em_scores(table[rows])[metric] == score[:4]
    best = em_scores(table)
    values = em_values(table[0], best)
    alone = METRICS[metric]([examples[0].labels], cell[:1])
    assert values[metric] == alone.values[alone.thresholds.index(best[metric].threshold)]


def test_an_image_made_taller_by_background_dilutes_itself_alone():
    examples, cell = some_examples(((40, 40), (40, 40), (40, 40)))
    examples = [e._replace(labels=np.maximum(e.labels, 0)) for e in examples]
    counts = em_scores(em_counts(examples, cell))["warping_error"].value * 3 * 1600
    examples[2] = examples[2]._replace(labels=np.pad(examples[2].labels, ((0, 400), (0, 0))))
    cell[2] = np.pad(cell[2], ((0, 400), (0, 0)))
    score = em_scores(em_counts(examples, cell))["warping_error"]
    assert score.value == pytest.approx(counts / (1600 + 1600 + 440 * 40))
    assert score.value > 0


def test_all_classes_above_0_are_cell():
    examples, cell = some_examples()
    several = [
        e._replace(labels=np.where(e.labels > 0, 1 + np.arange(e.labels.shape[1]) % 3, e.labels))
        for e in examples
    ]
    assert em_scores(em_counts(several, cell)) == em_scores(em_counts(examples, cell))
    assert em_errors(several, cell) == em_errors(examples, cell)


def test_images_without_a_cell_are_left_out_where_they_would_score_worst():
    examples, cell = some_examples()
    before = em_scores(em_counts(examples, cell))
    quiet, noisy = np.zeros(EMPTY.shape), np.pad(np.ones((5, 5)), ((0, 25), (0, 30)))
    table = em_counts([*examples, example(EMPTY), example(EMPTY)], [*cell, quiet, noisy])
    scores = em_scores(table)
    for metric in ("rand_error", "v_rand", "v_info"):
        assert scores[metric] == before[metric]
    # What is found there is an error all the same, and their pixels count.
    assert scores["pixel_error"].value > before["pixel_error"].value
    counted, more = sum(row.counted for row in table[:-2]), 2 * EMPTY.size
    expected = np.array(before["warping_error"].values) * counted / (counted + more)
    np.testing.assert_allclose(scores["warping_error"].values, expected, rtol=1e-12)
    nothing = {"rand_error": None, "v_rand": None, "v_info": None}
    nothing |= {"warping_error": 0.0, "warping_error_2016": 0.0}
    assert em_values(table[-2], scores) == nothing | {"pixel_error": 0.0}
    assert em_values(table[-1], scores) == nothing | {"pixel_error": 1.0}
    # No threshold is best where no cell is annotated: at the highest ones nothing is found.
    assert em_scores(table[-2:]) == dict.fromkeys(METRICS)
    assert em_values(table[-1], em_scores(table[-2:])) == dict.fromkeys(METRICS)


def test_an_image_of_one_cell_is_left_out_of_v_info():
    examples, cell = some_examples()
    one = np.pad(np.ones((9, 9), np.int32), 12)
    table = em_counts([*examples, example(one)], [*cell, one.astype(float)])
    assert em_scores(table)["v_info"] == em_scores(table[:-1])["v_info"]
    alone = em_scores(table[-1:])
    assert alone["v_info"] is None
    assert alone["v_rand"].value == 1 and alone["rand_error"].value == 0


def test_an_image_of_which_all_is_ignored_is_left_out_of_everything():
    examples, cell = some_examples()
    nothing = example(np.full((30, 30), IGNORED))
    table = em_counts([*examples, nothing], [*cell, np.ones((30, 30))])
    assert em_scores(table) == em_scores(table[:-1])
    assert em_values(table[-1], em_scores(table)) == dict.fromkeys(METRICS)


def test_em_errors_equal_the_metrics():
    examples, cell = some_examples()
    scores = em_scores(em_counts(examples, cell))
    assert em_errors(examples, cell) == {
        name: scores[name] for name in ("pixel_error", "rand_error")
    }
    assert em_errors([example(EMPTY)] * 2, [EMPTY + 0.5] * 2) == {}


def test_a_validation_split_without_a_cell_has_no_errors(monkeypatch):
    split, weights = [example(EMPTY)], [np.ones(EMPTY.shape, np.float32)]
    probability = np.stack([EMPTY + 0.75, EMPTY + 0.25], axis=-1).astype(np.float32)
    monkeypatch.setattr(validation, "predict_tiled", lambda model, image: probability)
    scores = validation.validate(None, split, weights, ["background", "cell"], {}).scores
    assert scores == {"loss": pytest.approx(-np.log(0.75), rel=1e-5), "mean_iou": 1.0}
    sparse = [example(np.where(np.arange(35) < 3, 0, IGNORED) + EMPTY)]
    assert "rand_error" not in validation.validate(None, sparse, weights, ["a", "b"], {}).scores


def test_images_of_different_sizes_by_hand():
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
    assert em_errors(examples, cell)["pixel_error"].value <= at_half
    assert em_scores(em_counts(examples, cell))["pixel_error"].values[5] == pytest.approx(at_half)
    exact = [e.labels.astype(float) for e in examples]
    assert em_errors(examples, exact)["pixel_error"].value == 0
    assert em_errors(examples, exact)["rand_error"].value == 0


def test_ignored_pixels_do_not_count():
    truth = example([[1, 1, 0, IGNORED, IGNORED]])
    good = [np.array([[1.0, 1.0, 0.0, 1.0, 0.0]])]
    assert em_errors([truth], good)["pixel_error"].value == 0


def test_class_scores():
    truth = example([[0, 1, 2, 2, IGNORED]])
    probabilities = np.eye(4)[[0, 1, 1, 2, 0]][None]
    scores = class_scores([truth], [probabilities], ["a", "b", "c", "d"])
    assert scores.intersection_over_union == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert scores.mean_iou == pytest.approx(2 / 3)
    # Rows are the true classes.
    confusion = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert scores.confusion.tolist() == confusion
    nothing = class_scores([example([[IGNORED]])], [np.ones((1, 1, 2))], ["a", "b"])
    assert nothing.mean_iou is None and not nothing.intersection_over_union


def test_baselines_on_a_picture_where_they_are_known():
    # Cells are exactly the bright half: the grey value is perfect, but for the blurred border.
    labels = np.zeros((40, 40), np.int32)
    labels[:, 20:] = 1
    bright = example(labels, (labels * 100 + 50).astype(np.uint8))
    dark = example(labels, (200 - labels * 100).astype(np.uint8))
    for picture in (bright, dark):
        found = baselines([picture])
        assert found["one class everywhere"]["pixel_error"].value == pytest.approx(1 / 3)
        assert found["blurred grey value"]["pixel_error"].value < 0.01
    constant = baselines([example(labels)])["blurred grey value"]
    assert constant["pixel_error"].value == pytest.approx(1 / 3)


def test_baselines_take_several_channels():
    labels = np.zeros((20, 30), np.int32)
    labels[:10] = 1
    image = np.stack([labels * 7.0, labels * 9.0], axis=-1)
    found = baselines([example(labels, image)])
    assert found["blurred grey value"]["pixel_error"].value < 0.05
