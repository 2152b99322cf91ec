"""Matching of single cells against StarDist's values, by hand and by optimal assignment."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.test_seg import some_frames
from unet_jax.example import IGNORED, Example
from unet_jax.metrics import OVERLAPS, matching
from unet_jax.metrics.scores import cell_overlaps

VECTORS = Path(__file__).parent / "vectors"
# By `matching_dataset` of StarDist 0.9.1 with `by_image=False`, at each of `OVERLAPS`.
STARDIST = json.loads((VECTORS / "matching.json").read_text())


def stardist_case(name):
    """The frames of a case."""
    if name.startswith("seed"):
        return some_frames(int(name.removeprefix("seed ")))
    with np.load(VECTORS / "seg" / f"{name}.npz") as case:
        return case["gt"], case["res"]


@pytest.mark.parametrize("name", STARDIST)
def test_equals_stardist(name):
    for found, expected in zip(matching(*stardist_case(name)), STARDIST[name], strict=True):
        assert [found.found, found.false, found.missed] == expected["counts"]
        values = [found.precision, found.recall, found.f1, found.average_precision]
        assert values == pytest.approx(expected["values"], rel=0, abs=1e-9)


def assigned(true, found, overlap):
    """True positives by optimal assignment over all pairs."""
    ids = [sorted(set(frame.flat) - {0}) for frame in (true, found)]
    table = np.zeros([len(some) for some in ids])
    for i, t in enumerate(ids[0]):
        for j, f in enumerate(ids[1]):
            both, either = (true == t) & (found == f), (true == t) | (found == f)
            table[i, j] = both.sum() / either.sum() >= overlap
    return table[linear_sum_assignment(table, maximize=True)].sum()


@pytest.mark.parametrize("seed", range(30))
def test_is_the_optimal_assignment(seed):
    """In frames so small that exact halves are frequent, where several assignments compete."""
    rng = np.random.default_rng(seed)
    reference, result = rng.integers(0, 4, (2, 40, 3, 3)) * rng.integers(0, 2, (2, 40, 1, 3))
    for score in matching(reference, result, (0.5, 0.6, 1.0)):
        expected = sum(map(assigned, reference, result, [score.overlap] * len(reference)))
        assert score.found == expected
    assert matching(reference, result, (0.5,))[0].found > 0


def test_a_cell_of_two_exact_halves_is_found_once():
    (score,) = matching([[[1, 1, 1, 1, 0]]], [[[5, 5, 7, 7, 0]]], [0.5])
    assert (score.found, score.false, score.missed) == (1, 1, 0)
    (score,) = matching([[[5, 5, 7, 7, 0]]], [[[1, 1, 1, 1, 0]]], [0.5])
    assert (score.found, score.false, score.missed) == (1, 0, 1)
    assert (score.precision, score.recall) == (1, 0.5)
    assert score.f1 == pytest.approx(2 / 3) and score.average_precision == 0.5


def test_nothing_there_and_nothing_found():
    nothing, cell = np.zeros((1, 4, 4), int), np.ones((1, 4, 4), int)
    for reference, result, counts in (
        (nothing, nothing, (0, 0, 0)),
        (cell, nothing, (0, 0, 1)),
        (nothing, cell, (0, 1, 0)),
    ):
        (score,) = matching(reference, result, [0.5])
        assert (score.found, score.false, score.missed) == counts
        assert score.precision == score.recall == score.f1 == score.average_precision == 0


def test_ids_may_be_large_and_no_pixel_background():
    reference = np.array([[[2**40, 2**40, 3, 3]]])
    assert matching(reference, reference[..., ::-1] + 1, [1.0])[0].found == 2


def test_frames_may_differ_in_size():
    (score,) = matching(
        [np.eye(3, dtype=int), np.ones((2, 5), int)],
        [np.eye(3, dtype=int), np.zeros((2, 5), int)],
        [0.5],
    )
    assert (score.found, score.missed) == (1, 1)


@pytest.mark.parametrize("overlap", [0.49, 1.01, np.nan])
def test_other_overlaps_are_refused(overlap):
    cells = np.ones((1, 2, 2), int)
    with pytest.raises(ValueError, match=r"^Overlaps must lie in \[0.5, 1\], not "):
        matching(cells, cells, [overlap])


def test_frames_that_do_not_fit_are_refused():
    cells = np.ones((1, 2, 2), int)
    with pytest.raises(ValueError, match="^The reference has 1 frames, but the result has 2.$"):
        matching(cells, [*cells, *cells])
    with pytest.raises(ValueError, match="dtype float64, expected integer ids"):
        matching(cells, cells.astype(float))


def test_cells_on_ignored_pixels_are_neither_right_nor_wrong():
    labels = np.array([[1, 1, 0, 0, IGNORED, IGNORED, IGNORED]])
    cells = np.array([[1, 1, 0, 0, 0, 0, 0]])
    example = Example("", np.zeros((1, 7), np.uint8), labels, cells)
    counts = cell_overlaps(example, np.array([[1, 1, 0, 2, 2, 2, 0]]))
    assert (counts.true_ids.size, counts.found_ids.size) == (1, 1)
    counts = cell_overlaps(example, np.array([[1, 1, 2, 2, 2, 2, 0]]))
    assert (counts.true_ids.size, counts.found_ids.size) == (1, 2), "half of it is no majority"
    assert list(counts.overlap) == [1]


def test_ap_is_asked_for_at_ten_overlaps():
    assert OVERLAPS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
