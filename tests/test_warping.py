"""The warping error by hand, against a literal transcription of its definition, and its maps."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from test_metrics import some_stack, stack

from unet_jax.metrics import THRESHOLDS, warping_error
from unet_jax.metrics.warping import _is_simple, splits_and_merges

TABLE = Path(__file__).parent / "vectors" / "metrics" / "simple_point_lut.json"
FOUR, EIGHT = ndimage.generate_binary_structure(2, 1), np.ones((3, 3))


def test_simple_points_are_those_of_the_official_table():
    official = json.loads(TABLE.read_text())["simple_point_4_8_lut"]
    assert len(official) == 256
    for pattern, simple in enumerate(official):
        cells = [pattern >> k & 1 for k in range(8)]  # NW, N, NE, W, E, SW, S, SE
        for centre in (0, 1):
            patch = np.array([*cells[:4], centre, *cells[4:]], bool).reshape(3, 3)
            assert _is_simple(patch, 1, 1) == (simple == "1"), patch


def is_simple_by_components(patch):
    ring = patch.copy()
    ring[1, 1] = False
    components, _ = ndimage.label(ring, FOUR)
    touching = {components[0, 1], components[1, 0], components[1, 2], components[2, 1]} - {0}
    membrane = ~patch
    membrane[1, 1] = False
    return len(touching) == 1 and ndimage.label(membrane, EIGHT)[1] == 1


def ids_around(components, y, x):
    height, width = components.shape
    return {
        int(components[v, u])
        for v in range(max(y - 1, 0), min(y + 2, height))
        for u in range(max(x - 1, 0), min(x + 2, width))
        if (v, u) != (y, x)
    }


def literal_splits_and_merges(cell, proposal, threshold, radius):
    """Sets of pixels, by the definition step by step."""
    source, target = np.pad(cell, 1), np.pad(proposal > threshold, 1)
    distance = np.pad(np.abs(proposal - threshold), 1).astype(np.float32)
    flipped = True
    while flipped:
        flipped = False
        mismatches = [(y, x) for x, y in np.argwhere((source != target).T)]
        for y, x in sorted(mismatches, key=lambda p: -distance[p]):
            if is_simple_by_components(source[y - 1 : y + 2, x - 1 : x + 2]):
                source[y, x] = not source[y, x]
                flipped = True

    warped = source[1:-1, 1:-1]
    components, _ = ndimage.label(warped, FOUR)
    splits, merges = set(), set()
    for y, x in np.argwhere(warped != target[1:-1, 1:-1]):
        ids = ids_around(components, y, x)
        if len(ids) >= 3:
            (splits if warped[y, x] else merges).add((y, x))
        elif len(ids) == 2 and warped[y, x]:
            around = np.pad(warped, radius)[y : y + 2 * radius + 1, x : x + 2 * radius + 1].copy()
            around[radius, radius] = False
            if len(ids_around(ndimage.label(around, FOUR)[0], radius, radius)) > 2:
                splits.add((y, x))
    return splits, merges


@pytest.mark.parametrize(("setting", "first", "radius"), [("2015", 0, 20), ("2016", 1, 10)])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_literal_definition(seed, setting, first, radius):
    labels, probabilities = some_stack(seed, (2, 26, 33))
    if seed % 2:  # many ties, which the order of the pixels decides
        probabilities = np.round(probabilities * 10) / np.float32(10)
    score = warping_error(labels, probabilities, setting=setting)
    assert score.thresholds == THRESHOLDS[first:10]

    errors = []
    for threshold in score.thresholds:
        split, merge = np.zeros((2, *labels.shape), bool)
        for s, (cell, proposal) in enumerate(zip(labels, probabilities, strict=True)):
            splits, merges = literal_splits_and_merges(
                cell, proposal.astype(np.float64), threshold, radius
            )
            for pixels, out in ((splits, split), (merges, merge)):
                for y, x in pixels:
                    out[s, y, x] = True
        errors.append((split.sum() + merge.sum()) / labels.size)
        if threshold == score.threshold:
            np.testing.assert_array_equal(score.split, split)
            np.testing.assert_array_equal(score.merge, merge)
    assert list(score.values) == errors
    assert len(set(errors)) >= 4  # a curve that could be wrong


def test_distances_are_compared_as_float32():
    # A cell 2 pixels high is cut. One pixel of the cut flips; the other would then split the cell.
    # Their distances from the threshold differ as float64 alone: the upper one comes first.
    threshold = THRESHOLDS[3]
    nearer = np.float32(0.1)
    farther = np.nextafter(nearer, np.float32(0))
    assert np.float64(nearer) - threshold > np.float64(farther) - threshold
    assert np.float32(np.float64(nearer) - threshold) == np.float32(np.float64(farther) - threshold)
    proposal = np.ones((2, 5))
    proposal[:, 2] = nearer, farther
    splits, merges = splits_and_merges(np.ones((2, 5), bool), proposal, "2015")[3]
    assert splits.tolist() == [7]  # row 1, column 2
    assert merges.size == 0


def test_a_merge_is_marked_as_merge():
    labels = stack("...#... ...#... ...#... ...#...")
    merged = stack("...#... ...#... ....... ...#...")
    score = warping_error(labels, merged)
    # One opened pixel stays: flipping it would join the cells.
    assert score.value == 1 / labels.size
    assert np.argwhere(score.merge).tolist() == [[0, 2, 3]]
    assert not score.split.any()


def test_a_split_is_marked_as_split():
    labels = stack("....... ....... .......")
    split = stack("...#... ...#... ...#...")
    score = warping_error(labels, split)
    assert score.value == 1 / labels.size
    assert score.split.sum() == 1 and score.split[0, :, 3].any()
    assert not score.merge.any()


def test_shifts_holes_and_lost_cells_do_not_count():
    labels = stack("..#....#.. ..#....#.. ..#....#.. ..#....#..")
    for predicted in (
        stack("...#...#.. ...#...#.. ...#...#.. ...#...#.."),  # shifted
        stack("..#....#.. ..#.##.#.. ..#.##.#.. ..#....#.."),  # a hole
        stack("..######.. ..######.. ..######.. ..######.."),  # a cell less
    ):
        score = warping_error(labels, predicted)
        assert score.value == 0
        assert not score.split.any() and not score.merge.any()


def ring(side, gap):
    """A square ring of cell 3 pixels wide, cut at its top if `gap`."""
    cell = np.zeros((1, side, side), bool)
    cell[:, 2:-2, 2:-2] = True
    cell[:, 5:-5, 5:-5] = False
    if gap:
        cell[:, :5, side // 2] = False
    return cell


def test_a_ring_cut_once_is_a_split_only_if_the_way_around_is_out_of_sight():
    for side, of_2015, of_2016 in ((14, 0, 0), (22, 0, 1), (60, 1, 1)):
        labels, cut = ring(side, gap=False), ring(side, gap=True)
        assert (warping_error(labels, cut).value > 0) == of_2015, side
        assert (warping_error(labels, cut, setting="2016").value > 0) == of_2016, side


def test_slices_smaller_than_the_radius_are_seen_whole():
    # The way around is 30 pixels long, but the slice is less than 20 high.
    labels = np.ones((1, 9, 80), bool)
    labels[:, 2:7, 10:70] = False
    cut = labels.copy()
    cut[:, :2, 40] = False
    assert warping_error(labels, cut).value == 0
    taller = [np.pad(a, ((0, 0), (0, 11), (0, 0))) for a in (labels, cut)]  # 20 high
    assert warping_error(*taller).value > 0


def test_labels_that_are_all_cell():
    labels = np.ones((1, 5, 9), bool)
    split = labels.copy()
    split[:, :, 4] = False
    assert warping_error(labels, split).split.sum() == 1
    assert warping_error(labels, labels).value == 0


def test_all_membrane_scores_0():
    labels, _ = some_stack()
    assert warping_error(labels, np.zeros_like(labels)).value == 0


def test_unknown_setting():
    with pytest.raises(ValueError, match="^setting must be '2015' or '2016', not 2015.$"):
        warping_error(*some_stack(), setting=2015)
