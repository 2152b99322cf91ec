import numpy as np

from unet_jax.data.folder import connected_cells
from unet_jax.data.synthetic_em import synthetic_em
from unet_jax.example import IGNORED, Example, annotated_share, is_sparse, rescaled, separated
from unet_jax.resizing import resized, scaled_size


def example(instances, labels=None, image=None):
    instances = np.asarray(instances, np.int32)
    labels = (instances > 0).astype(np.int32) if labels is None else np.asarray(labels, np.int32)
    image = np.arange(instances.size, dtype=np.uint16).reshape(instances.shape)
    return Example("x", image, labels, instances)


def test_half_the_resolution_by_hand():
    half = rescaled(example([[1, 1, 0, 0], [1, 1, 0, 2], [0, 3, 3, 3], [0, 3, 3, 3]]), 0.5)
    assert half.image.shape == half.labels.shape == (2, 2) and half.image.dtype == np.float32
    np.testing.assert_array_equal(half.instances, [[1, 2], [3, 3]], strict=False)
    np.testing.assert_array_equal(half.labels, [[1, 1], [1, 1]])
    assert half.labels.dtype == half.instances.dtype == np.int32
    # Each new pixel averages its four old ones and, a little, those around them.
    assert half.image[0, 0] < half.image[0, 1] < half.image[1, 0] < half.image[1, 1]


def test_scale_1_changes_nothing():
    original = example([[1, 0], [0, 2]])
    assert rescaled(original, 1.0) is original


def test_a_constant_stays_constant_and_one_pixel_remains():
    for size in [(7, 9), (1, 1), (2, 60)]:
        for scale in (0.1, 0.375, 0.5, 1.7):
            smaller = resized(np.full(size, 7.0), scaled_size(size, scale))
            assert min(smaller.shape) >= 1
            np.testing.assert_allclose(smaller, 7.0, rtol=1e-6)
    assert scaled_size((100, 30), 0.375) == (38, 11)
    assert resized(np.ones((4, 6, 3)), (2, 3)).shape == (2, 3, 3)


def test_a_pattern_of_single_pixels_becomes_grey_when_it_shrinks():
    board = np.indices((64, 64)).sum(0) % 2 * 1.0
    middle = resized(board, (24, 24))[4:-4, 4:-4]
    assert np.abs(middle - 0.5).max() < 0.1


def test_edges_stay_where_they_are():
    step = np.zeros((40, 40))
    step[:, 20:] = 1
    back = resized(resized(step, (20, 20)), (40, 40))
    np.testing.assert_array_equal(back > 0.5, step > 0.5)


def test_touching_cells_get_a_ridge_of_two_pixels():
    touching = example([[0, 1, 1, 2, 2], [0, 1, 1, 2, 2], [0, 0, 3, 3, 0], [4, 0, 3, 3, 0]])
    apart = separated(touching)
    expected = [[0, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]]
    np.testing.assert_array_equal(apart.labels, expected)
    np.testing.assert_array_equal(apart.instances, touching.instances * expected)


def test_no_ridge_between_classes_in_ignored_pixels_or_at_corners():
    labels = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, IGNORED, IGNORED]]
    instances = [[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0]]
    classes = example(instances, labels)
    np.testing.assert_array_equal(separated(classes).labels, labels)
    corner = example([[1, 0], [0, 2]])
    np.testing.assert_array_equal(separated(corner).labels, corner.labels)


def test_components_are_separate_already():
    _, instances = synthetic_em(0, height=80, width=90)
    labels = (instances > 0).astype(np.int32)
    micrograph = Example("x", labels, labels, connected_cells(labels))
    np.testing.assert_array_equal(separated(micrograph).labels, labels)


def test_few_annotated_pixels_without_cells_are_sparse():
    labels = np.array([[0, 1, IGNORED, IGNORED, IGNORED]])
    full, none = np.zeros((1, 1), int), np.zeros_like(labels)
    assert annotated_share([labels]) == 0.4
    assert annotated_share([labels, full]) == 0.5
    strokes = Example("a", labels, labels, none)
    assert is_sparse([strokes])
    assert not is_sparse([strokes, Example("b", full, full, full)])
    assert not is_sparse([strokes._replace(instances=np.maximum(labels, 0))]), "a few whole cells"
