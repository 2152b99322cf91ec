"""The challenge's metrics against the official values, by hand and by brute force."""

import json
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unet_jax.metrics import THRESHOLDS, pixel_error, rand_error

METRICS = [pixel_error, rand_error]
GENERATED = Path(__file__).parent / "vectors" / "metrics"
# These hold slices of the challenge's labels, which may not be copied into the repository.
REAL = ["real_crop3_128", "real_slice0_512", "real_next_slice_512"]


def official_case(folder, name):
    with np.load(folder / f"{name}.npz") as case:
        labels, proposal = case["labels"], case["proposal"]
    return labels, proposal, json.loads((folder / "values.json").read_text())[name]


def assert_official(labels, proposal, values):
    for metric in METRICS:
        official = values[metric.__name__]
        assert metric(labels, proposal).value == pytest.approx(official, rel=0, abs=1e-9)


@pytest.mark.parametrize("name", json.loads((GENERATED / "values.json").read_text()))
def test_equals_official_value(name):
    assert_official(*official_case(GENERATED, name))


@pytest.mark.parametrize("name", REAL)
def test_equals_official_value_on_real_labels(name):
    if "UNET_JAX_DATA" not in os.environ:
        pytest.skip("UNET_JAX_DATA does not name the folder of real data")
    folder = Path(os.environ["UNET_JAX_DATA"]).parent / "vectors" / "metrics"
    if not (folder / f"{name}.npz").exists():
        pytest.skip(f"{folder} has no {name}.npz")
    assert_official(*official_case(folder, name))


def stack(*slices):
    """Slices drawn as rows of '#' (membrane) and '.' (cell)."""
    return np.array([[[pixel == "." for pixel in row] for row in rows.split()] for rows in slices])


def some_stack(seed=0, shape=(3, 24, 20)):
    """Random cells and a noisy prediction of them."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(s, 2) for s in rng.normal(size=shape)])
    labels = np.abs(smooth) > 0.05
    return labels, np.clip(labels * 0.6 + rng.uniform(-0.3, 0.5, shape), 0, 1).astype(np.float32)


def test_thresholds_are_the_official_doubles():
    threshold, expected = 0.0, []
    while threshold <= 1.0:
        expected.append(threshold)
        threshold += 0.1
    assert list(THRESHOLDS) == expected
    assert len(THRESHOLDS) == 11
    assert THRESHOLDS[3] == 0.30000000000000004
    assert THRESHOLDS[8:] == (0.7999999999999999, 0.8999999999999999, 0.9999999999999999)


def test_by_hand():
    labels = stack("..#. ..#.")  # cells of 4 and 2 pixels
    predicted = stack("...# ..#.")

    # TP 5, FP 1, FN 1: F = 10 / 12.
    assert pixel_error(labels, predicted).value == pytest.approx(1 - 10 / 12)

    # c = [[4, 0], [0, 1]] and c_20 = 1. TP = 16 + 1 + 1, TP + FP = 16 + 1 + 1: the predicted pixel
    # on the membrane does not count. TP + FN = 16 + 4. F = 36 / 38.
    assert rand_error(labels, predicted).value == pytest.approx(1 - 36 / 38)

    # One predicted cell: c = [[4], [2]]. TP = 16 + 4, TP + FP = 36, TP + FN = 20. F = 40 / 56.
    assert rand_error(labels, np.ones_like(labels)).value == pytest.approx(1 - 40 / 56)

    # Both slices: TP = 18 + 20, TP + FP = 18 + 36, TP + FN = 20 + 20. F = 76 / 94.
    both = rand_error(np.repeat(labels, 2, 0), np.concatenate([predicted, np.ones_like(labels)]))
    assert both.value == pytest.approx(1 - 76 / 94)


def components_by_flooding(mask):
    """{pixel: component}, by nothing but 4-neighbourhood."""
    component = {}
    for start in map(tuple, np.argwhere(mask)):
        queue = [start]
        while queue:
            y, x = queue.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]
            if inside and (y, x) not in component:
                component[y, x] = start
                queue += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return component


@pytest.mark.parametrize("seed", range(5))
def test_rand_error_counts_pairs(seed):
    labels, probabilities = some_stack(seed, (2, 9, 8))
    f_scores = []
    for threshold in THRESHOLDS:
        both = predicted_together = truly_together = 0
        for cell, proposal in zip(labels, probabilities.astype(np.float64), strict=True):
            truth = components_by_flooding(cell)
            # Predicted membrane: each pixel is on its own, together with itself only.
            segment = {p: ("alone", p) for p in truth}
            segment.update(components_by_flooding(proposal > threshold))
            for p, q in product(truth, truth):
                predicted_together += segment[p] == segment[q]
                truly_together += truth[p] == truth[q]
                both += segment[p] == segment[q] and truth[p] == truth[q]
        precision, recall = both / predicted_together, both / truly_together
        f_scores.append(2 * precision * recall / (precision + recall))

    score = rand_error(labels, probabilities)
    np.testing.assert_allclose(score.values, 1 - np.array(f_scores), rtol=0, atol=1e-12)
    assert len(set(score.values)) > 5  # a curve that could be wrong


@pytest.mark.parametrize("metric", METRICS)
def test_value_is_the_first_minimum_of_the_curve(metric):
    score = metric(*some_stack())
    assert score.thresholds == THRESHOLDS
    assert score.value == min(score.values)
    assert score.threshold == THRESHOLDS[score.values.index(score.value)]
    assert isinstance(score.value, float) and isinstance(score.values[0], float)
    assert 0 < score.threshold < 1

    labels, _ = some_stack()
    assert metric(labels, labels).threshold == 0.0


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_prediction_has_no_error(metric):
    labels, _ = some_stack()
    assert metric(labels, labels).values == (0.0,) * 11


@pytest.mark.parametrize("metric", METRICS)
def test_invariances(metric):
    labels, probabilities = some_stack()
    score = metric(labels, probabilities)
    assert metric(labels.astype(np.uint8) * 255, probabilities) == score
    assert metric(labels.astype(np.int32), probabilities.astype(np.float64)) == score
    for change in (
        lambda a: a[[2, 0, 1]],
        lambda a: a[:, ::-1],
        lambda a: a[:, :, ::-1],
        lambda a: a.swapaxes(1, 2),
        lambda a: np.repeat(a, 2, axis=0),
    ):
        np.testing.assert_allclose(
            metric(change(labels), change(probabilities)).values, score.values, rtol=0, atol=1e-12
        )


def test_slices_are_not_connected():
    two_cells = stack("..#..", "..#..")
    # c = [[2, 0], [0, 2]] in one slice and [[2], [2]] in the other: F = 2 * 16 / (24 + 16).
    predicted = stack("..#..", ".....")
    assert rand_error(two_cells, predicted).value == pytest.approx(1 - 32 / 40)


def test_merge_and_split_raise_the_rand_error():
    labels = stack("...#... ...#... ...#...")
    merged = stack("...#... ....... ...#...")
    split = stack(".#.#... .#.#... .#.#...")
    gap_left = stack(".#.#... ...#... .#.#...")
    diagonal = stack("..# .#. #..")
    assert rand_error(labels, merged).value > 0.2
    assert rand_error(labels, split).value > 1.5 * rand_error(labels, gap_left).value > 0
    # Diagonal neighbours are not connected: opening the middle of the diagonal merges.
    assert rand_error(diagonal, diagonal).value == 0
    assert rand_error(diagonal, stack("..# ... #..")).value > 0.3


def test_membrane_of_the_labels_does_not_count_in_the_rand_error():
    wide, thin = stack("..###.."), stack("...#...")
    assert rand_error(wide, thin).value == 0
    assert pixel_error(wide, thin).value > 0


def cell_at(probability, dtype=np.float32):
    """How many thresholds a single pixel exceeds, by its pixel error."""
    return pixel_error(stack("."), np.full((1, 1, 1), probability, dtype)).values.count(0.0)


def test_a_probability_must_exceed_the_threshold():
    assert cell_at(0.0) == 0
    assert cell_at(0.5) == 5
    assert cell_at(np.nextafter(np.float32(0.5), np.float32(1))) == 6
    assert cell_at(1.0) == 11


def test_quantised_maps_are_compared_as_float32_with_double_thresholds():
    # float32(0.2, 0.4, 0.6, 0.8) are a little above the thresholds, float32(0.7, 0.9) below.
    levels = [cell_at(k / 10) for k in range(11)]
    assert levels == [0, 2, 3, 4, 5, 5, 7, 7, 9, 9, 11]
    # A float64 map is rounded first.
    assert levels == [cell_at(k / 10, np.float64) for k in range(11)]


def test_stacks_without_cell_or_membrane():
    cell, membrane = np.ones((1, 3, 4), bool), np.zeros((1, 3, 4), bool)
    assert (pixel_error(cell, cell).value, rand_error(cell, cell).value) == (0, 0)
    # The official values of this case: no pixel is wrong, but there is no pair to be right.
    assert (pixel_error(membrane, membrane).value, rand_error(membrane, membrane).value) == (0, 1)
    assert (pixel_error(membrane, cell).value, rand_error(membrane, cell).value) == (1, 1)
    assert pixel_error(cell, membrane).value == 1
    # 12 single pixels: TP = TP + FP = 12, TP + FN = 144.
    assert rand_error(cell, membrane).value == pytest.approx(1 - 24 / 156)


def test_slice_without_cell_adds_nothing_to_the_rand_error():
    labels, probabilities = some_stack()
    empty, noise = np.zeros((1, 24, 20), bool), probabilities[:1]
    with_empty = rand_error(np.concatenate([labels, empty]), np.concatenate([probabilities, noise]))
    assert with_empty == rand_error(labels, probabilities)


def changed(array, position, value):
    array = array.copy()
    array[position] = value
    return array


GOOD = np.tile(np.array([0, 1], np.int32), (3, 4, 2))
BAD_INPUTS = {
    "shapes differ": (GOOD, GOOD[:, 1:] / 1, r"\(3, 4, 4\) .* \(3, 3, 4\) differ"),
    "not 3-D": (GOOD[0], GOOD[0] / 1, r"found shape \(4, 4\)"),
    "no slices": (GOOD[:0], GOOD[:0] / 1, r"found shape \(0, 4, 4\)"),
    "no pixels": (GOOD[:, :, :0], GOOD[:, :, :0] / 1, r"found shape \(3, 4, 0\)"),
    "float labels": (GOOD / 1, GOOD / 1, "found float64"),
    "three labels": (
        changed(GOOD, (2, 1, 3), 7),
        GOOD / 1,
        "here 1; slice 2 holds 7 at row 1, column 3",
    ),
    "ignored": (changed(GOOD, (1, 2, 3), -1), GOOD / 1, "slice 1 holds -1 at row 2, column 3"),
    "only ignored": (GOOD * 0 - 1, GOOD / 1, "slice 0 holds -1"),
    "other scale": (changed(GOOD, 1, GOOD[1] * 255), GOOD / 1, "here 1; slice 1 holds 255"),
    "NaN": (GOOD, changed(GOOD / 1, (2, 1, 0), np.nan), "slice 2 holds nan at row 1, column 0"),
    "infinite": (GOOD, changed(GOOD / 1, (1, 0, 0), np.inf), "slice 1 holds inf"),
    "above 1": (GOOD, changed(GOOD / 1, (1, 3, 3), 1.5), "slice 1 holds 1.5 at row 3, column 3"),
    "below 0": (GOOD, changed(GOOD / 1, (0, 0, 0), -0.1), "slice 0 holds -0.1"),
    "8 bit": (GOOD, np.full(GOOD.shape, 200, np.uint8), "slice 0 holds 200"),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_in_one_line(metric, case):
    labels, probabilities, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message) as error:
        metric(labels, probabilities)
    assert "\n" not in str(error.value)
