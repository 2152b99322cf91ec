"""What the metrics of the ISBI 2012 challenge share, against the official values and by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unet_jax.compiled import compiled
from unet_jax.metrics import THRESHOLDS, pixel_error, rand_error, v_info, v_rand, warping_error


def warping_error_2016(labels, probabilities):
    return warping_error(labels, probabilities, setting="2016")


ERRORS = [pixel_error, rand_error, warping_error, warping_error_2016]
SCORES = [v_rand, v_info]
METRICS = ERRORS + SCORES
OFFICIAL_NAMES = {
    pixel_error: "pixel_error",
    rand_error: "rand_error",
    warping_error: "warping_error",
    warping_error_2016: "warping_error_r10_from_0p1",
    v_rand: "v_rand_thinned",
    v_info: "v_info_thinned",
}
GENERATED = Path(__file__).parent / "vectors" / "metrics"
# These hold slices of the challenge's labels, which may not be copied into the repository.
REAL = ["real_crop3_128", "real_slice0_512", "real_next_slice_512"]


def stack(*slices):
    """Slices drawn as rows of '#' (membrane) and '.' (cell)."""
    return np.array([[[pixel == "." for pixel in row] for row in rows.split()] for rows in slices])


def some_stack(seed=0, shape=(3, 24, 20)):
    """Random cells and a noisy prediction of them."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(s, 2) for s in rng.normal(size=shape)])
    labels = np.abs(smooth) > 0.05
    return labels, np.clip(labels * 0.6 + rng.uniform(-0.3, 0.5, shape), 0, 1).astype(np.float32)


def real_vectors(name):
    """The path of a case that may not be copied."""
    if "UNET_JAX_DATA" not in os.environ:
        pytest.skip("UNET_JAX_DATA does not name the folder of real data")
    folder = Path(os.environ["UNET_JAX_DATA"]).parent / "vectors" / "metrics"
    if not (folder / f"{name}.npz").exists():
        pytest.skip(f"{folder} has no {name}.npz")
    return folder


def assert_official(folder, name):
    with np.load(folder / f"{name}.npz") as case:
        labels, proposal = case["labels"], case["proposal"]
    values = json.loads((folder / "values.json").read_text())[name]
    for metric, official_name in OFFICIAL_NAMES.items():
        score, official = metric(labels, proposal), values[official_name]
        if official is None:  # warping error of labels that are all cell
            continue
        assert score.value == pytest.approx(official, rel=0, abs=1e-9), official_name
        if metric in (warping_error, warping_error_2016):
            pixels = score.split.sum() + score.merge.sum()
            assert pixels == round(official * labels.size), official_name


@pytest.mark.parametrize("name", json.loads((GENERATED / "values.json").read_text()))
def test_equals_official_value(name):
    assert_official(GENERATED, name)


@pytest.mark.parametrize("name", REAL)
def test_equals_official_value_on_real_labels(name):
    assert_official(real_vectors(name), name)


def test_8_bit_proposals_must_be_scaled_first():
    name = "normalised_8bit"
    with np.load(real_vectors(name) / f"{name}.npz") as case:
        labels, proposal, normalised = (
            case[key] for key in ("labels", "proposal_uint8", "normalised")
        )
    for metric in METRICS:
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; slice 0 holds \d+ at row 0"):
            metric(labels, proposal)
        assert metric(labels, normalised).threshold in THRESHOLDS


def test_thresholds_are_the_official_doubles():
    threshold, expected = 0.0, []
    while threshold <= 1.0:
        expected.append(threshold)
        threshold += 0.1
    assert list(THRESHOLDS) == expected
    assert len(THRESHOLDS) == 11
    assert THRESHOLDS[3] == 0.30000000000000004
    assert THRESHOLDS[8:] == (0.7999999999999999, 0.8999999999999999, 0.9999999999999999)


@pytest.mark.parametrize("metric", METRICS)
def test_value_is_the_first_best_of_the_curve(metric):
    labels, _ = some_stack()
    score = metric(*some_stack())
    best = min if metric in ERRORS else max
    assert set(score.thresholds) <= set(THRESHOLDS)
    assert len(score.values) == len(score.thresholds) >= 9
    assert score.value == best(score.values)
    assert score.threshold == score.thresholds[score.values.index(score.value)]
    assert isinstance(score.value, float) and isinstance(score.values[0], float)
    assert 0 < score.threshold < 1
    assert len(set(score.values)) > 5  # a curve that could be wrong
    assert metric(labels, labels).threshold == score.thresholds[0]


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_prediction(metric):
    labels, _ = some_stack()
    labels[:, :, 10] = False  # two cells at least: V_info has nothing to tell about one
    perfect = 0 if metric in ERRORS else 1
    np.testing.assert_allclose(metric(labels, labels).values, perfect, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_worse_predictions_score_worse(metric):
    labels, probabilities = some_stack(shape=(2, 64, 64))
    noise = np.random.default_rng(0).uniform(size=labels.shape).astype(np.float32)
    slight = metric(labels, 0.9 * probabilities + 0.1 * noise).value
    strong = metric(labels, 0.3 * probabilities + 0.7 * noise).value
    assert slight < strong if metric in ERRORS else slight > strong


@pytest.mark.parametrize("metric", METRICS)
def test_other_numbers_for_cell_and_another_order_of_slices(metric):
    labels, probabilities = some_stack()
    values = metric(labels, probabilities).values
    assert metric(labels.astype(np.uint8) * 255, probabilities).values == values
    assert metric(labels.astype(np.int32), probabilities.astype(np.float64)).values == values
    for change in (
        lambda a: a[[2, 0, 1]],
        lambda a: np.repeat(a, 2, axis=0),
        lambda a: np.asfortranarray(a),
    ):
        np.testing.assert_allclose(
            metric(change(labels), change(probabilities)).values, values, rtol=0, atol=1e-12
        )


# The others depend on the order in which pixels are flooded or warped.
@pytest.mark.parametrize("metric", [pixel_error, rand_error])
def test_mirrored_and_turned(metric):
    labels, probabilities = some_stack()
    values = metric(labels, probabilities).values
    for change in (lambda a: a[:, ::-1], lambda a: a[:, :, ::-1], lambda a: a.swapaxes(1, 2)):
        np.testing.assert_allclose(
            metric(change(labels), change(probabilities)).values, values, rtol=0, atol=1e-12
        )


def test_pixel_error_by_hand():
    # TP 5, FP 1, FN 1: F = 10 / 12.
    assert pixel_error(stack("..#. ..#."), stack("...# ..#.")).value == pytest.approx(1 - 10 / 12)


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


CELL, MEMBRANE = np.ones((1, 3, 4), bool), np.zeros((1, 3, 4), bool)


@pytest.mark.parametrize(
    ("labels", "probabilities", "pixel", "rand", "warping", "v_rand_score", "v_info_score"),
    [
        (CELL, CELL, 0, 0, 0, 1, 0),
        # Officially too: no pixel is wrong, but there is no pair to be right.
        (MEMBRANE, MEMBRANE, 0, 1, 0, 0, 0),
        (MEMBRANE, CELL, 1, 1, 0, 0, 0),
        # 12 single pixels: TP = TP + FP = 12, TP + FN = 144; thinned, they are one segment.
        (CELL, MEMBRANE, 1, 1 - 24 / 156, 0, 1, 0),
    ],
)
def test_stacks_without_cell_or_membrane(
    labels, probabilities, pixel, rand, warping, v_rand_score, v_info_score
):
    assert pixel_error(labels, probabilities).value == pixel
    assert rand_error(labels, probabilities).value == pytest.approx(rand)
    assert warping_error(labels, probabilities).value == warping
    assert v_rand(labels, probabilities).value == v_rand_score
    assert v_info(labels, probabilities).value == v_info_score


def test_slice_without_cell():
    labels, probabilities = some_stack()
    empty, noise = np.zeros((1, 24, 20), bool), probabilities[:1]
    with_empty = np.concatenate([labels, empty]), np.concatenate([probabilities, noise])
    assert rand_error(*with_empty) == rand_error(labels, probabilities)
    for metric in SCORES:
        scores = np.array(metric(labels, probabilities).values)
        np.testing.assert_allclose(metric(*with_empty).values, scores * 3 / 4)


def some_slices():
    """Three of different sizes, their cells as integers."""
    slices = [
        some_stack(seed, (1, *size)) for seed, size in enumerate([(24, 20), (40, 33), (21, 50)])
    ]
    labels, probabilities = zip(*slices, strict=True)
    return [a[0].astype(np.int32) for a in labels], [p[0] for p in probabilities]


def filled_up(arrays, value):
    """A stack of arrays of different sizes, with the value below and to the right."""
    height, width = np.max([a.shape for a in arrays], axis=0)
    padding = [((0, height - a.shape[0]), (0, width - a.shape[1])) for a in arrays]
    return np.stack(
        [np.pad(a, p, constant_values=value) for a, p in zip(arrays, padding, strict=True)]
    )


def scaled_by_pixels(metric, values, before, after):
    """Only the warping error is a share of the pixels."""
    of_pixels = metric in (warping_error, warping_error_2016)
    return np.array(values) * (before / after if of_pixels else 1)


@pytest.mark.parametrize("metric", METRICS)
def test_slices_of_different_sizes_score_as_they_are(metric):
    labels, probabilities = some_slices()
    score = metric(labels, probabilities)
    alone = np.array([metric([a], [p]).values for a, p in zip(labels, probabilities, strict=True)])
    if metric in SCORES:
        np.testing.assert_allclose(score.values, alone.mean(0), rtol=0, atol=1e-12)
    if metric in (warping_error, warping_error_2016):
        expected = np.average(alone, axis=0, weights=[a.size for a in labels])
        np.testing.assert_allclose(score.values, expected, rtol=0, atol=1e-12)
        assert [m.shape for m in (*score.split, *score.merge)] == [a.shape for a in labels] * 2
        marked = sum(map(np.sum, (*score.split, *score.merge)))
        assert marked == round(score.value * sum(a.size for a in labels)) > 0
    # As a stack, whatever is predicted where nothing counts.
    ignored = metric(filled_up(labels, -1), filled_up(probabilities, 1))
    np.testing.assert_allclose(ignored.values, score.values, rtol=0, atol=1e-12)
    assert ignored.threshold == score.threshold


@pytest.mark.parametrize("metric", METRICS)
def test_background_around_a_slice_changes_no_more_than_the_number_of_pixels(metric):
    labels, probabilities = some_slices()
    pixels = sum(a.size for a in labels)
    values = metric(labels, probabilities).values
    for arrays in (labels, probabilities):
        arrays[1] = np.pad(arrays[1], ((0, 70), (0, 9)))
    taller = metric(labels, probabilities).values
    expected = scaled_by_pixels(metric, values, pixels, sum(a.size for a in labels))
    np.testing.assert_allclose(taller, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_ignored_pixels_do_not_count(metric):
    labels, probabilities = some_slices()
    holes = [np.random.default_rng(0).random(a.shape) < 0.2 for a in labels]
    ignored = [np.where(hole, -1, a) for a, hole in zip(labels, holes, strict=True)]
    membrane = [np.where(hole, 0, a) for a, hole in zip(labels, holes, strict=True)]
    agreeing = [np.where(hole, 0, p) for p, hole in zip(probabilities, holes, strict=True)]
    expected = scaled_by_pixels(
        metric,
        metric(membrane, agreeing).values,
        sum(a.size for a in labels),
        sum(np.sum(~hole) for hole in holes),
    )
    opposite = [np.where(hole, 1, p) for p, hole in zip(probabilities, holes, strict=True)]
    for predicted in (probabilities, agreeing, opposite):
        values = metric(ignored, predicted).values
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    nowhere = [*labels, np.full((30, 20), -1)], [*probabilities, np.ones((30, 20))]
    if metric in ERRORS:  # which are no means over slices
        assert metric(*nowhere).values == metric(labels, probabilities).values


def changed(array, position, value):
    array = array.copy()
    array[position] = value
    return array


GOOD = np.tile(np.array([0, 1], np.int32), (3, 4, 2))
BAD_INPUTS = {
    "numbers differ": (GOOD, GOOD[1:] / 1, "Found 3 slices of labels and 2 of probabilities"),
    "shapes differ": (GOOD, GOOD[:, 1:] / 1, r"\(4, 4\) .* \(3, 4\) differ in slice 0"),
    "one shape differs": ([*GOOD], [*GOOD[:2] / 1, GOOD[2, 1:] / 1], r"differ in slice 2"),
    "not 3-D": (GOOD[0], GOOD[0] / 1, r"Slice 0 has shape \(4,\)"),
    "no slices": (GOOD[:0], GOOD[:0] / 1, "Found 0 slices"),
    "no pixels": (GOOD[:, :, :0], GOOD[:, :, :0] / 1, r"Slice 0 has shape \(4, 0\)"),
    "float labels": (GOOD / 1, GOOD / 1, "slice 0 is float64"),
    "three labels": (
        changed(GOOD, (2, 1, 3), 7),
        GOOD / 1,
        "here 1; slice 2 holds 7 at row 1, column 3",
    ),
    "negative": (changed(GOOD, (1, 2, 3), -2), GOOD / 1, "slice 1 holds -2 at row 2, column 3"),
    "only ignored": (GOOD * 0 - 1, GOOD / 1, "^All labels are -1 "),
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


def test_compiled_functions_work_where_nothing_can_be_written():
    namespace = {}
    # Numba finds no folder for what it compiles of a function without a file.
    exec("def add_one(x): return x + 1", namespace)
    assert compiled(namespace["add_one"])(1) == 2


def test_importing_the_package_does_not_import_the_compiler():
    program = "import sys, unet_jax; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
