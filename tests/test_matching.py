"""Matching of single cells against StarDist's values, by hand and by optimal assignment."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from tests.test_seg import some_frames
from unet_jax.example import IGNORED, Example
from unet_jax.metrics import OVERLAPS, matching
from unet_jax.metrics.cell_errors import cell_errors
from unet_jax.metrics.scores import cell_overlaps
from unet_jax.metrics.seg import overlapping

VECTORS = Path(__file__).parent / "vectors"
# By `matching_dataset` of StarDist 0.9.2 with `by_image=False`, at each of `OVERLAPS`.
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
        *of_counts, panoptic_quality = expected["values"]
        assert values == pytest.approx(of_counts, rel=0, abs=1e-9)
        # StarDist's overlaps are of float32.
        assert found.panoptic_quality == pytest.approx(panoptic_quality, rel=0, abs=1e-7)


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
        assert score.panoptic_quality == 0


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


def test_ignored_pixels_around_a_cell_do_not_count():
    labels = np.array([[1, 1, IGNORED, IGNORED, 0, 0, 0]])
    example = Example("", np.zeros((1, 7), np.uint8), labels, np.array([[1, 1, 0, 0, 0, 0, 0]]))
    counts = cell_overlaps(example, np.array([[1, 1, 1, 0, 0, 0, 0]]))
    assert list(counts.overlap) == [1]
    counts = cell_overlaps(example, np.array([[1, 1, 1, 1, 1, 1, 0]]))
    assert list(counts.overlap) == [0.5]


def test_ap_is_asked_for_at_ten_overlaps():
    assert OVERLAPS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def errors(reference, result):
    found = cell_errors(overlapping(np.array(reference), np.array(result)))
    return {kind: [*ids] for kind, ids in found._asdict().items()}


def test_cells_that_are_missed_false_split_and_merged():
    nothing = {"missed": [], "false": [], "split": [], "merged": []}
    row = [7, 7, 7, 7, 0, 8, 8, 8]
    assert errors([row], [[3, 3, 3, 3, 0, 1, 1, 1]]) == nothing
    assert errors([row], [[3, 3, 3, 3, 0, 0, 0, 0]]) == nothing | {"missed": [8]}
    assert errors([[7, 7, 7, 7, 0, 0]], [[3, 3, 3, 3, 0, 2]]) == nothing | {"false": [2]}
    # Two pieces, whether or not one of them is large enough to count as found.
    assert errors([row], [[3, 3, 4, 4, 0, 1, 1, 1]]) == nothing | {"split": [7]}
    assert errors([row], [[3, 0, 4, 0, 0, 1, 1, 1]]) == nothing | {"split": [7]}
    assert errors([row], [[3, 3, 3, 4, 0, 1, 1, 1]]) == nothing | {"split": [7]}
    assert errors([row], [[5] * 8]) == nothing | {"merged": [5]}
    # A little of both, of which the network finds too little.
    assert errors([row], [[0, 0, 0, 5, 5, 5, 0, 0]]) == {
        **nothing,
        "missed": [7, 8],
        "false": [5],
    }
    # Found with an outline that is too wide: it is neither there nor is the other one right.
    assert errors([[7, 0, 0]], [[3, 3, 3]]) == nothing | {"missed": [7], "false": [3]}


@pytest.mark.parametrize("seed", range(20))
def test_cell_errors_are_those_counted_pair_by_pair(seed):
    rng = np.random.default_rng(seed)
    true, found = rng.integers(0, 6, (2, 4, 6)) * rng.integers(0, 2, (2, 4, 6))
    ids, numbers = (sorted({*frame.flat} - {0}) for frame in (true, found))

    def shared(t, f):
        return ((true == t) & (found == f)).sum()

    def overlap(t, f):
        return shared(t, f) / ((true == t) | (found == f)).sum()

    pieces = {t: [f for f in numbers if 2 * shared(t, f) > (found == f).sum()] for t in ids}
    covered = {f: [t for t in ids if 2 * shared(t, f) > (true == t).sum()] for f in numbers}
    split = [t for t in ids if len(pieces[t]) > 1]
    merged = [f for f in numbers if len(covered[f]) > 1]
    excused = {t for f in merged for t in covered[f]} | {*split}
    pardoned = {f for t in split for f in pieces[t]} | {*merged}
    assert errors(true, found) == {
        "missed": [
            t for t in ids if t not in excused and all(overlap(t, f) < 0.5 for f in numbers)
        ],
        "false": [
            f for f in numbers if f not in pardoned and all(overlap(t, f) < 0.5 for t in ids)
        ],
        "split": split,
        "merged": merged,
    }
