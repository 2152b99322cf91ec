"""SEG against the official values, by hand and by brute force."""

import json
from pathlib import Path

import numpy as np
import pytest

from unet_jax.metrics import seg

VECTORS = Path(__file__).parent / "vectors" / "seg"
OFFICIAL = json.loads((VECTORS / "values.json").read_text())


@pytest.mark.parametrize("name", OFFICIAL)
def test_equals_official_value(name):
    with np.load(VECTORS / f"{name}.npz") as case:
        reference, result = case["gt"], case["res"]
    if not OFFICIAL[name]["per_object"]:
        with pytest.raises(ValueError, match="^No reference object in any of the 1 frames.$"):
            seg(reference, result)
        return
    score = seg(reference, result)
    assert score.value == pytest.approx(OFFICIAL[name]["SEG"], rel=0, abs=1e-9)
    np.testing.assert_allclose(score.per_object, OFFICIAL[name]["per_object"], rtol=0, atol=1e-9)


def some_frames(seed=0, shape=(3, 30, 40)):
    """Rectangles, and others like them."""
    rng = np.random.default_rng(seed)
    reference, result = np.zeros((2, *shape), np.int32)
    for frame in range(shape[0]):
        for number in range(1, 12):
            y, x = rng.integers(shape[1]), rng.integers(shape[2])
            reference[frame, y : y + 9, x : x + 7] = number
            y, x = np.maximum([y, x] + rng.integers(-2, 3, 2), 0)
            result[frame, y : y + 9, x : x + 7] = 100 - number
    return reference, result


@pytest.mark.parametrize("seed", range(5))
def test_brute_force(seed):
    reference, result = some_frames(seed)
    expected = []
    for true, found in zip(reference, result, strict=True):
        for r in sorted(set(true.flat) - {0}):
            overlap = 0.0
            for s in set(found.flat) - {0}:
                shared = np.sum((true == r) & (found == s))
                if shared > 0.5 * np.sum(true == r):
                    overlap = shared / np.sum((true == r) | (found == s))
            expected.append(overlap)
    score = seg(reference, result)
    assert score.per_object == pytest.approx(expected, rel=0, abs=1e-12)
    assert score.value == pytest.approx(np.mean(expected), rel=0, abs=1e-12)
    assert 0.1 < score.value < 0.9


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_ids_may_be_any_numbers(dtype):
    """Few and small ones are counted in a table, others are sorted."""
    reference, result = some_frames()
    large = np.iinfo(dtype).max // 120
    for true, found in ([1, large], [large, 1]):
        frames = reference.astype(dtype) * dtype(true), result.astype(dtype) * dtype(found)
        assert seg(*frames) == seg(reference, result)


def test_perfect_and_empty_results():
    reference, _ = some_frames()
    assert seg(reference, reference).value == 1
    assert seg(reference, np.zeros_like(reference)).value == 0


def test_all_objects_count_alike_in_whatever_frame():
    one = np.array([[1, 1, 0, 0]])
    three = np.array([[1, 2, 3, 0]])
    # 0 of 1 object and 3 of 3: not the mean of the frames, 1 / 2.
    assert seg([one, three], [0 * one, three]).value == 3 / 4


def test_frames_without_reference_do_not_count():
    reference, result = some_frames()
    value = seg(reference, result).value
    assert seg([*reference, 0 * reference[0]], [*result, result[0]]).value == value


def test_more_than_half_must_be_covered():
    reference = np.array([[[1, 1, 1, 1, 0, 0]]])
    assert seg(reference, np.array([[[7, 7, 0, 0, 0, 0]]])).per_object == (0.0,)
    assert seg(reference, np.array([[[7, 7, 7, 0, 0, 0]]])).per_object == (0.75,)
    assert seg(reference, np.array([[[7, 7, 7, 7, 7, 7]]])).per_object == (4 / 6,)


def test_merges_and_splits_cost_and_further_objects_do_not():
    reference = np.array([[[1, 1, 1, 0, 2, 2, 0, 0]]])
    assert seg(reference, np.array([[[5, 5, 5, 5, 5, 5, 0, 0]]])).per_object == (3 / 6, 2 / 6)
    assert seg(reference, np.array([[[5, 5, 6, 0, 7, 8, 0, 0]]])).per_object == (2 / 3, 0.0)
    assert seg(reference, np.array([[[5, 5, 5, 0, 7, 7, 0, 9]]])).value == 1


def test_ids_are_only_names_and_frames_may_be_in_any_order():
    reference, result = some_frames()
    score = seg(reference, result)
    for dtype in (np.uint8, np.uint16, np.int64):
        assert seg(reference.astype(dtype), result.astype(dtype)) == score
    huge = np.where(result, 2**62 + result.astype(np.int64), 0)
    assert seg(reference.astype(np.int64) * 60000, huge) == score
    assert seg(reference[::-1], result[::-1]).value == pytest.approx(score.value)
    assert seg(list(reference), list(result)) == score


def test_frames_of_different_sizes():
    reference, result = some_frames()
    crops = [slice(0, 20), slice(0, 25), slice(0, 30)]
    frames = [
        [frame[crop] for frame, crop in zip(a, crops, strict=True)] for a in (reference, result)
    ]
    assert len(seg(*frames).per_object) == sum(len(np.unique(f)) - 1 for f in frames[0])


def test_noise_needs_no_table_of_all_pairs():
    ids = np.arange(1, 512 * 512 + 1).reshape(1, 512, 512)  # a table would have 2^36 entries
    score = seg(ids, ids + 7)
    assert score.value == 1
    assert len(score.per_object) == 512 * 512


GOOD = np.array([[[0, 1], [1, 2]], [[0, 1], [1, 2]]])
BAD_INPUTS = {
    "numbers of frames": (GOOD, GOOD[:1], "reference has 2 frames, but the result has 1"),
    "no frames": ([], [], "No reference object in any of the 0 frames"),
    "no object": (0 * GOOD, GOOD, "No reference object in any of the 2 frames"),
    "one frame": (GOOD[0], GOOD[0], r"Frame 0 of the reference has shape \(2,\), expected \[h"),
    "shapes": (GOOD, [GOOD[0], GOOD[0, :1]], r"Frame 1 .* shape \(2, 2\), .* result \(1, 2\)"),
    "float": ([GOOD[0], GOOD[1] / 1], GOOD, "Frame 1 of the reference has dtype float64"),
    "bool": (GOOD, GOOD > 0, "Frame 0 of the result has dtype bool, expected integer ids"),
    "negative": (GOOD, [GOOD[0], GOOD[1] - 1], "Frame 1 of the result holds -1, expected ids"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_refused_in_one_line(case):
    reference, result, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message) as error:
        seg(reference, result)
    assert "\n" not in str(error.value)
