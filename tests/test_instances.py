import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from unet_jax.evaluation.instance_tuning import tune
from unet_jax.example import Example
from unet_jax.instances import InstanceSettings, find_cells
from unet_jax.metrics import matching, seg

NOTHING_ELSE = InstanceSettings(
    threshold=0.5, largest_hole=0, neck_ratio=0.0, smallest_cell=0, border=0.0
)


def picture(*rows):
    return np.array([[{"#": 0.9, "o": 0.6, ".": 0.1}[c] for c in row] for row in rows])


def found(probability, **settings):
    return find_cells(probability, dataclasses.replace(NOTHING_ELSE, **settings))


def test_components_at_a_threshold():
    probability = picture("##.#", "oo..", ".##.")
    np.testing.assert_array_equal(found(probability), [[1, 1, 0, 2], [1, 1, 0, 0], [0, 1, 1, 0]])
    np.testing.assert_array_equal(
        found(probability, threshold=0.7), [[1, 1, 0, 2], [0, 0, 0, 0], [0, 3, 3, 0]]
    )
    assert found(probability).dtype == np.int32
    assert found(np.full((2, 2), 0.5)).max() == 0  # a probability must exceed the threshold


def test_small_cells_are_dropped_and_the_others_numbered():
    probability = picture("#.##.###")
    np.testing.assert_array_equal(found(probability, smallest_cell=2), [[0, 0, 1, 1, 0, 2, 2, 2]])
    assert found(probability, smallest_cell=4).max() == 0


def test_holes_of_a_size_are_filled_and_diagonal_borders_are_no_holes():
    ring = picture("#####", "#.#.#", "###.#", "#####")
    assert (found(ring, largest_hole=1) == 0).sum() == 2
    assert (found(ring, largest_hole=2) == 0).sum() == 0
    diagonal = picture("###.", "##.#", "#.##", ".###")
    np.testing.assert_array_equal(found(diagonal, largest_hole=3), found(diagonal))
    assert found(diagonal).max() == 2


def discs(*places, shape=(60, 100)):
    """Of (row, column, radius); 1 where cell is."""
    rows, columns = np.indices(shape)
    inside = [(rows - y) ** 2 + (columns - x) ** 2 < radius**2 for y, x, radius in places]
    return np.any(inside, 0) * 1.0


def test_a_cluster_is_divided_where_it_is_narrow():
    mask = discs((30, 30, 15), (30, 54, 13))
    assert found(mask).max() == 1
    # The chord in which they meet is 17 wide, 0.65 of the smaller one; smoothed a bit more.
    cells = found(mask, neck_ratio=0.8)
    assert cells.max() == 2 and found(mask, neck_ratio=0.5).max() == 1
    assert ((cells > 0) == (mask > 0)).all(), "no pixel is lost"
    line = cells[30]
    assert list(np.unique(line[10:40])) == [0, 1] and list(np.unique(line[46:70])) == [0, 2]
    edge = np.flatnonzero(np.diff(line) == 1)[-1]
    assert 41 <= edge <= 44, "where the discs meet"


def test_round_and_long_cells_are_not_divided():
    long = np.zeros((60, 100))
    long[20:32, 5:95] = 1
    for mask in (discs((30, 50, 25)), discs((30, 50, 2)), long, np.ones((60, 100))):
        assert found(mask, neck_ratio=0.9).max() == 1


def test_small_and_large_cells_are_divided_by_the_same_setting():
    for radius in (5, 10, 20):
        pair = discs((40, 40, radius), (40, 40 + 1.8 * radius, radius), shape=(80, 100))
        assert found(pair, neck_ratio=0.75).max() == 2, radius


def test_what_would_be_too_small_stays_with_its_neighbour():
    mask = discs((30, 30, 15), (30, 48, 5))
    assert found(mask, neck_ratio=1.0).max() > 1
    cells = found(mask, neck_ratio=1.0, smallest_cell=100)
    assert cells.max() == 1 and ((cells > 0) == (mask > 0)).all()
    assert found(discs((30, 30, 3)), neck_ratio=1.0, smallest_cell=100).max() == 0


def watershed_by_flooding(mask, neck):
    """The same cells by scikit-image: summits that differ in the logarithm, then flooding."""
    distance = np.minimum(ndimage.distance_transform_edt(mask), 50)
    height = ndimage.gaussian_filter(distance, 1.0, mode="nearest", radius=4)
    log = np.log(np.maximum(height, 1e-9)) * mask + -30 * ~mask
    summits = ndimage.label(h_maxima(log, -np.log(neck)))[0]
    return watershed(-height, summits * mask, mask=mask)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_watershed_by_flooding(seed):
    rng = np.random.default_rng(seed)
    places = [(*rng.uniform(10, 190, 2), rng.uniform(4, 14)) for _ in range(60)]
    mask = discs(*places, shape=(200, 200))
    cells, expected = found(mask, neck_ratio=0.75), watershed_by_flooding(mask > 0, 0.75)
    assert cells.max() == expected.max() > found(mask).max() + 5
    (score,) = matching([expected], [cells], [0.8])
    assert score.f1 > 0.97


def test_the_border_grows_back_without_overlap():
    mask = np.zeros((20, 41))
    mask[4:16, 4:19] = mask[4:16, 22:37] = 1  # 3 pixels of background between them
    cells = found(mask, border=2.0)
    middle = cells[10, 20]  # as far from the one as from the other
    assert middle in (1, 2)
    np.testing.assert_array_equal(cells[10], [0] * 2 + [1] * 18 + [middle] + [2] * 18 + [0] * 2)
    for cell in (1, 2):
        core = found(mask) == cell
        reach = ndimage.distance_transform_edt(~core)
        assert reach[cells == cell].max() <= 2


@pytest.mark.parametrize("settings", [NOTHING_ELSE, InstanceSettings(neck_ratio=0.9, border=4.0)])
def test_all_background_and_all_cell(settings):
    assert find_cells(np.zeros((30, 40)), settings).max() == 0
    assert (find_cells(np.ones((30, 40)), settings) == 1).all()


@pytest.mark.parametrize(
    ("probability", "message"),
    [
        (np.ones((3, 4, 2)), r"shape \(3, 4, 2\)"),
        (np.ones((0, 4)), r"shape \(0, 4\)"),
        (np.array([[0.5, np.nan]]), "from nan to nan"),
        (np.array([[0.5, 255.0]]), "from 0.5 to 255.0"),
        (np.array([[-0.1, 0.5]]), "from -0.1"),
    ],
)
def test_what_is_no_probability_is_refused(probability, message):
    with pytest.raises(ValueError, match=message):
        find_cells(probability, NOTHING_ELSE)


def blurred_cells(seed):
    """Touching squares of 12 pixels, and a probability that is blurred, noisy and leaky."""
    rng = np.random.default_rng(seed)
    instances = np.kron(rng.permutation(17)[:16].reshape(4, 4), np.ones((12, 12), int))
    example = Example("x", instances, (instances > 0).astype(np.int32), instances.astype(np.int32))
    leaks = rng.random(instances.shape) < 0.2
    apart = instances * (
        ndimage.maximum_filter(instances, 3) == ndimage.minimum_filter(instances, 3)
    )
    probability = ndimage.gaussian_filter(((apart > 0) | leaks) * 1.0, 0.5) * 0.95
    probability = np.clip(probability + rng.normal(0, 0.05, probability.shape), 0, 1)
    return example, probability


def test_tuning_finds_settings_better_than_the_defaults():
    pairs = [blurred_cells(seed) for seed in range(3)]
    examples, probabilities = map(list, zip(*pairs, strict=True))
    settings, quality, left_out = tune(examples, probabilities)
    references = [e.instances for e in examples]

    def quality_of(settings):
        found = [find_cells(p, settings) for p in probabilities]
        (pairs,) = matching(references, found, [0.5])
        return seg(references, found).value, pairs.panoptic_quality

    assert quality == pytest.approx(quality_of(settings), abs=1e-12)
    assert quality_of(InstanceSettings())[0] < 0.7 and quality.seg > 0.8
    assert settings.neck_ratio > 0 and settings.border > 0

    by_others = []
    for i in range(3):
        others = [j for j in range(3) if j != i]
        of_others = tune([examples[j] for j in others], [probabilities[j] for j in others]).settings
        by_others.append(find_cells(probabilities[i], of_others))
    # Other sizes of cells and holes are tried.
    assert left_out.seg == pytest.approx(seg(references, by_others).value, abs=0.02)
    assert sum(left_out) <= sum(quality)
    alone = tune(examples[:1], probabilities[:1])
    assert alone.left_out is None
    large_ids = examples[0]._replace(instances=references[0] * 10**8)
    assert tune([large_ids], probabilities[:1]) == alone


def test_tuning_drops_specks_where_there_is_no_cell():
    example, probability = blurred_cells(0)
    no_cells = np.zeros((48, 48), np.int32)
    empty = Example("empty", no_cells, no_cells, no_cells)
    # Of 36 pixels where the smallest cell has 144: SEG alone would keep them.
    specks = np.kron(np.indices((4, 4)).sum(0) % 2, np.pad(np.ones((6, 6)), 3)) * 0.99
    settings = tune([example, empty], [probability, specks]).settings
    assert settings.smallest_cell > 36
    assert not find_cells(specks, settings).any() and find_cells(probability, settings).any()
