import numpy as np
import pytest

from unet_jax.mirroring import mirror_indices, mirrored_part


def test_mirror_indices_do_not_repeat_the_edge():
    assert mirror_indices(-3, 6, 3).tolist() == [1, 2, 1, 0, 1, 2, 1, 0, 1]
    line = np.arange(7)
    assert np.array_equal(line[mirror_indices(-20, 25, 7)], np.pad(line, (20, 18), mode="reflect"))
    assert not mirror_indices(-5, 5, 1).any()


@pytest.mark.parametrize(
    "part", [(0, 4, 0, 5), (1, 3, 2, 4), (-9, 2, 3, 17), (-3, 30, -25, 1), (6, 9, 7, 8)]
)
def test_a_part_is_that_of_the_whole_mirrored(part):
    image = np.arange(4 * 5 * 2).reshape(4, 5, 2)
    top, bottom, left, right = part
    mirrored = np.pad(image, [(30, 30), (30, 30), (0, 0)], mode="reflect")
    expected = mirrored[top + 30 : bottom + 30, left + 30 : right + 30]
    np.testing.assert_array_equal(mirrored_part(image, *part), expected)
