import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from tests.test_overlap_tile import he_model, picture
from unet_jax import overlap_tile
from unet_jax.grey_values import grey_value_statistics
from unet_jax.network import context
from unet_jax.normalisation import normalise
from unet_jax.overlap_tile import predict_tiled, tile_probabilities


def test_rotations_average_what_comes_back():
    """Against the whole image turned by SciPy, a route of its own."""
    small = he_model(depth=2, width=2)
    image = picture(61, 45)
    padded = np.pad(image, 80, mode="reflect")
    statistics = grey_value_statistics(image[..., None])
    expected = np.zeros((61, 45, 2))
    for k in range(7):
        turned = ndimage.rotate(padded, k * 360 / 7, reshape=False, order=1, mode="mirror")
        normalised = normalise(turned[None, :-1, :-1, None], *statistics)  # even sides
        margin = context(2)
        # The image begins at row and column 80, which is a multiple of the pooling grid.
        probabilities = np.asarray(tile_probabilities(small.network)(small.params, normalised))[0]
        whole_canvas = np.pad(probabilities, [(margin, margin + 1), (margin, margin + 1), (0, 0)])
        back = ndimage.rotate(whole_canvas, -k * 360 / 7, reshape=False, order=1)
        expected += back[80:-80, 80:-80] / 7
    averaged = predict_tiled(small, image, averaging="rotations")
    np.testing.assert_allclose(averaged.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(averaged, expected, atol=1e-4)
    other_tiles = predict_tiled(small, image, averaging="rotations", tile_side=2 * context(2) + 22)
    np.testing.assert_allclose(averaged, other_tiles, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_each_pixel_is_written_by_one_rotated_tile_for_each_angle(depth, monkeypatch):
    """A network of the same probabilities everywhere: a pixel of two tiles, or of none, differs."""
    model, margin = he_model(depth, width=1), context(depth)
    probabilities = jnp.array([0.25, 0.75])

    @jax.jit
    def predict(_, tiles):
        sides = (side - 2 * margin for side in tiles.shape[1:3])
        return jnp.broadcast_to(probabilities, (len(tiles), *sides, 2))

    monkeypatch.setattr(overlap_tile, "tile_probabilities", lambda _: predict)
    sizes = np.random.default_rng(depth).integers(1, 120, (10, 2))
    for height, width in [(1, 1), (1, 90), (64, 64), (65, 64), (101, 77), *sizes]:
        for tile_side in (2 * margin + 20, 2 * margin + 44):
            image = np.eye(height, width)
            result = predict_tiled(model, image, tile_side=tile_side, averaging="rotations")
            np.testing.assert_allclose(result, np.broadcast_to(probabilities, result.shape), 1e-6)
