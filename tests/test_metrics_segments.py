"""Rand error, V_rand, V_info and the thinning, by hand and by brute force."""

from collections import Counter, deque
from itertools import product
from math import log

import numpy as np
import pytest
from test_metrics import some_stack, stack

from unet_jax.metrics import THRESHOLDS, rand_error, v_info, v_rand
from unet_jax.metrics.thinning import thinned


def test_rand_error_by_hand():
    labels = stack("..#. ..#.")  # cells of 4 and 2 pixels
    predicted = stack("...# ..#.")

    # c = [[4, 0], [0, 1]] and c_20 = 1. TP = 16 + 1 + 1, TP + FP = 16 + 1 + 1: the predicted pixel
    # on the membrane does not count. TP + FN = 16 + 4. F = 36 / 38.
    assert rand_error(labels, predicted).value == pytest.approx(1 - 36 / 38)

    # One predicted cell: c = [[4], [2]]. TP = 16 + 4, TP + FP = 36, TP + FN = 20. F = 40 / 56.
    assert rand_error(labels, np.ones_like(labels)).value == pytest.approx(1 - 40 / 56)

    # Both slices: TP = 18 + 20, TP + FP = 18 + 36, TP + FN = 20 + 20. F = 76 / 94.
    both = rand_error(np.repeat(labels, 2, 0), np.concatenate([predicted, np.ones_like(labels)]))
    assert both.value == pytest.approx(1 - 76 / 94)


def test_scores_after_thinning_by_hand():
    # Two cells of 2 pixels, of which the second is split: c = [[2, 0, 0], [0, 0, 1]], c_20 = 1.
    labels, predicted = stack("..#.."), stack("..##.")
    # Thinned, the line is pixel 3: TP = 4 + 1 + 1 = TP + FP, TP + FN = 4 + 4. F = 12 / 14.
    assert thinned(predicted[0]).tolist() == [[1, 1, 1, 0, 2]]
    assert v_rand(labels, predicted).value == pytest.approx(12 / 14)
    # H(T) = ln 2; S has probabilities 1/2, 1/4, 1/4, and T follows from S: I = H(T).
    entropy = 0.5 * log(2) + 0.5 * log(4)
    recall = log(2) / entropy
    assert v_info(labels, predicted).value == pytest.approx(2 * recall / (1 + recall))

    # Means over slices: the other slice is perfect.
    both = np.repeat(labels, 2, 0), np.concatenate([predicted, labels])
    assert v_rand(*both).value == pytest.approx((12 / 14 + 1) / 2)
    assert v_info(*both).value == pytest.approx((2 * recall / (1 + recall) + 1) / 2)


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


def segments_by_watershed(mask):
    """{pixel: segment} of Vincent's and Soille's flooding of any grey values, here two levels."""
    height = {(x, y): 255 * (not cell) for (x, y), cell in np.ndenumerate(mask.T)}
    label = dict.fromkeys(height, "unseen")
    number, overwritable = 0, False

    def neighbours(x, y):
        return [n for n in ((x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1)) if n in height]

    for level in sorted(set(height.values())):
        pixels = [p for p in height if height[p] == level]
        queue = deque()
        for p in pixels:
            label[p] = "dry"
            if any(isinstance(label[n], int) for n in neighbours(*p)):
                label[p] = "queued"
                queue.append(p)
        while queue:
            p = queue.popleft()
            for n in neighbours(*p):
                if label[n] == "dry":
                    label[n] = "queued"
                    queue.append(n)
                elif label[n] == 0:
                    if label[p] == "queued":
                        label[p], overwritable = 0, True
                elif isinstance(label[n], int):
                    if label[p] == "queued" or (label[p] == 0 and overwritable):
                        label[p] = label[n]
                    elif label[p] != 0 and label[p] != label[n]:
                        label[p], overwritable = 0, False
        for p in pixels:
            if label[p] == "dry":
                number += 1
                queue.append(p)
                label[p] = number
                while queue:
                    for n in neighbours(*queue.popleft()):
                        if label[n] == "dry":
                            label[n] = number
                            queue.append(n)
    return {(y, x): label[x, y] for x, y in label if label[x, y] != 0}


def same_partition(a, b):
    """Whether two labellings differ only in the names of the parts."""
    assert a.keys() == b.keys()
    return len({(a[p], b[p]) for p in a}) == len(set(a.values())) == len(set(b.values()))


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.7, 0.95])
def test_thinning_equals_a_literal_watershed(share):
    rng = np.random.default_rng(round(100 * share))
    for shape in ((17, 31), (31, 17), (1, 40), (40, 1), (24, 24)):
        mask = rng.random(shape) < share
        labels = thinned(mask)
        ours = {p: labels[p] for p in map(tuple, np.argwhere(labels))}
        assert same_partition(ours, segments_by_watershed(mask))


def test_thinning_of_nothing_and_of_everything():
    for mask in (np.zeros((5, 7), bool), np.ones((5, 7), bool)):
        assert (thinned(mask) == 1).all()


def pair_counts(cell, predicted, segments):
    """TP, TP + FP, TP + FN of the pairs of labelled pixels, each pair asked one by one."""
    truth = components_by_flooding(cell)
    # Predicted membrane: each pixel is on its own, together with itself only.
    segment = {p: ("alone", p) for p in truth} | segments(predicted)
    both = predicted_together = truly_together = 0
    for p, q in product(truth, truth):
        predicted_together += segment[p] == segment[q]
        truly_together += truth[p] == truth[q]
        both += segment[p] == segment[q] and truth[p] == truth[q]
    return np.array([both, predicted_together, truly_together])


def f_score(both, predicted, true):
    precision, recall = both / predicted, both / true
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(5))
def test_rand_error_counts_pairs(seed):
    labels, probabilities = some_stack(seed, (2, 9, 8))
    errors = []
    for threshold in THRESHOLDS:
        counts = sum(
            pair_counts(cell, proposal > threshold, components_by_flooding)
            for cell, proposal in zip(labels, probabilities.astype(np.float64), strict=True)
        )
        errors.append(1 - f_score(*counts))
    score = rand_error(labels, probabilities)
    np.testing.assert_allclose(score.values, errors, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_v_rand_counts_pairs(seed):
    labels, probabilities = some_stack(seed, (2, 9, 8))
    scores = []
    for threshold in THRESHOLDS:
        of_slices = [
            f_score(*pair_counts(cell, proposal > threshold, segments_by_watershed))
            for cell, proposal in zip(labels, probabilities.astype(np.float64), strict=True)
        ]
        scores.append(np.mean(of_slices))
    score = v_rand(labels, probabilities)
    np.testing.assert_allclose(score.values, scores, rtol=0, atol=1e-12)


def entropy(names):
    names = list(names)
    return -sum(n / len(names) * log(n / len(names)) for n in Counter(names).values())


@pytest.mark.parametrize("seed", range(5))
def test_v_info_is_mutual_information(seed):
    labels, probabilities = some_stack(seed, (2, 15, 12))
    scores = []
    for threshold in THRESHOLDS:
        of_slices = []
        for cell, proposal in zip(labels, probabilities.astype(np.float64), strict=True):
            truth = components_by_flooding(cell)
            segment = {p: ("alone", p) for p in truth} | segments_by_watershed(proposal > threshold)
            h_truth = entropy(truth.values())
            h_segment = entropy(segment[p] for p in truth)
            if min(h_truth, h_segment) == 0:
                of_slices.append(0)
                continue
            shared = h_truth + h_segment - entropy((truth[p], segment[p]) for p in truth)
            precision, recall = shared / h_truth, shared / h_segment
            of_slices.append(2 * precision * recall / (precision + recall))
        scores.append(np.mean(of_slices))
    score = v_info(labels, probabilities)
    np.testing.assert_allclose(score.values, scores, rtol=0, atol=1e-12)


def test_slices_are_not_connected():
    two_cells = stack("..#..", "..#..")
    # c = [[2, 0], [0, 2]] in one slice and [[2], [2]] in the other: F = 2 * 16 / (24 + 16).
    predicted = stack("..#..", ".....")
    assert rand_error(two_cells, predicted).value == pytest.approx(1 - 32 / 40)


def test_a_merge_and_a_split_score_worse():
    labels = stack("...#... ...#... ...#...")
    merged = stack("...#... ....... ...#...")
    split = stack(".#.#... .#.#... .#.#...")
    gap_left = stack(".#.#... ...#... .#.#...")
    assert rand_error(labels, merged).value > 0.2
    assert rand_error(labels, split).value > 1.5 * rand_error(labels, gap_left).value > 0
    for score in (v_rand, v_info):
        assert score(labels, merged).value < 0.8
        assert score(labels, split).value < 0.9
        assert score(labels, gap_left).value == pytest.approx(1)  # not split: thinned away


def test_diagonal_neighbours_are_not_connected():
    diagonal, opened = stack("..# .#. #.."), stack("..# ... #..")
    assert rand_error(diagonal, diagonal).value == 0
    assert rand_error(diagonal, opened).value > 0.3
    assert v_rand(diagonal, diagonal).value == 1
    assert v_rand(diagonal, opened).value < 0.8


def test_membrane_of_the_labels_does_not_count():
    wide, thin = stack("..###.."), stack("...#...")
    assert rand_error(wide, thin).value == 0
    assert v_rand(wide, thin).value == 1
    assert v_info(wide, thin).value == 1


def test_width_of_predicted_membranes_counts_only_before_thinning():
    labels, wide = stack("....#.... ....#...."), stack("...###... ...###...")
    assert rand_error(labels, wide).value > 0.1
    assert v_rand(labels, wide).value == 1
    assert v_info(labels, wide).value == pytest.approx(1)
