import numpy as np
import pytest
from scipy import ndimage as ndi
from scipy.spatial import ConvexHull

from unet_jax.data.synthetic_em import synthetic_em, synthetic_examples


@pytest.fixture(scope="module")
def pictures():
    return [synthetic_em(seed) for seed in range(3)]


def cell_sizes(instances):
    return np.bincount(instances.ravel())[1:]


def test_same_seed_same_picture_and_other_seed_other_picture():
    picture, instances = synthetic_em(1, height=100, width=120)
    again, instances_again = synthetic_em(1, height=100, width=120)
    np.testing.assert_array_equal(picture, again)
    np.testing.assert_array_equal(instances, instances_again)

    other, other_instances = synthetic_em(2, height=100, width=120)
    assert (picture != other).mean() > 0.5
    assert ((instances > 0) != (other_instances > 0)).mean() > 0.1


@pytest.mark.parametrize("shape", [(512, 512), (77, 200), (20, 16)])
def test_cells_are_the_4_connected_components(shape):
    picture, instances = synthetic_em(3, height=shape[0], width=shape[1])
    assert (picture.shape, picture.dtype) == (shape, np.uint8)
    assert (instances.shape, instances.dtype) == (shape, np.int32)

    components, count = ndi.label(instances > 0)
    assert instances.max() == count > 0
    pairs = np.unique(np.stack([instances, components]).reshape(2, -1), axis=1)
    assert pairs.shape[1] == count + 1  # membrane and every cell paired with one component each


def test_membranes_cover_about_a_fifth(pictures):
    for _, instances in pictures:
        assert 0.18 < (instances == 0).mean() < 0.26


def test_cells_are_many_and_of_very_different_sizes(pictures):
    for _, instances in pictures:
        sizes = cell_sizes(instances)
        assert 100 < len(sizes) < 200
        assert np.quantile(sizes, 0.9) > 10 * np.quantile(sizes, 0.1)
        assert 30 <= sizes.min() < 100
        assert 5000 < sizes.max() < 0.1 * instances.size


def test_many_cells_are_not_convex(pictures):
    for _, instances in pictures:
        large = np.flatnonzero(cell_sizes(instances) >= 500) + 1
        cells = [np.argwhere(instances == n) for n in large]
        filled = [len(cell) / ConvexHull(cell).volume for cell in cells]
        assert np.quantile(filled, 0.25) < 0.9


def test_cells_are_brighter_than_membranes(pictures):
    for picture, instances in pictures:
        assert picture[instances > 0].mean() > picture[instances == 0].mean() + 30


def test_labels_are_where_the_membranes_are_to_the_pixel(pictures):
    for picture, instances in pictures:
        membrane = instances == 0
        grey_here = picture[membrane].mean()
        for shift in (-1, 1):
            for axis in (0, 1):
                assert picture[np.roll(membrane, shift, axis)].mean() > grey_here + 2


def test_grey_values_alone_do_not_segment(pictures):
    for picture, instances in pictures:
        grey, cell = ndi.gaussian_filter(picture / 255, 1), instances > 0
        f_scores = []
        for threshold in np.linspace(0, 1, 11):
            found = grey > threshold
            f_scores.append(2 * (found & cell).sum() / (found.sum() + cell.sum()))
        assert 0.07 < 1 - max(f_scores) < 0.13


def test_examples_do_not_depend_on_their_number():
    one, two = (synthetic_examples(4, count, height=80, width=90) for count in (1, 2))
    assert [example.name for example in two] == ["picture 0", "picture 1"]
    np.testing.assert_array_equal(one[0].image, two[0].image)
    np.testing.assert_array_equal(one[0].instances, two[0].instances)
    assert (two[0].image != two[1].image).mean() > 0.5


def test_examples_are_labelled_by_their_instances():
    (example,) = synthetic_examples(5, 1, height=80, width=90)
    assert (example.image.shape, example.image.dtype) == ((80, 90), np.uint8)
    assert (example.labels.dtype, example.instances.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(example.labels, example.instances > 0)
    assert example.labels.any()
