from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from unet_jax.augmentation import (
    AugmentationSettings,
    Crop,
    augment,
    elastic_displacement,
    mirrored,
    part_corner,
    sample,
    tile_coordinates,
    vary_grey_values,
)

PAPER = AugmentationSettings()
OFF = AugmentationSettings(**dict.fromkeys(vars(PAPER), 0.0))

pytestmark = pytest.mark.usefixtures("strict")


def example(height=64, width=80, channels=2):
    rng = np.random.default_rng(0)
    return Crop(
        image=rng.normal(size=(height, width, channels)).astype(np.float32),
        labels=rng.integers(0, 3, (height, width)).astype(np.int32),
        weights=rng.uniform(1, 5, (height, width)).astype(np.float32),
        size=np.int32([height, width]),
    )


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
@pytest.mark.parametrize("tile_side", [44, 45, 100])
def test_zero_strength_is_the_identity_bit_for_bit(transform, tile_side):
    source = example()
    tile = transform(lambda k, e: augment(k, e, OFF, tile_side=tile_side, context=6))(
        jax.random.key(0), source
    )
    top, left = (64 - tile_side) // 2, (80 - tile_side) // 2
    # Mirrored without repeating the edge, as NumPy's "reflect" does.
    padding = [(40, 40), (40, 40)]

    def cut(array, margin):
        padded = np.pad(array, padding + [(0, 0)] * (array.ndim - 2), mode="reflect")
        side = tile_side - 2 * margin
        y, x = top + 40 + margin, left + 40 + margin
        return padded[y : y + side, x : x + side]

    assert np.array_equal(tile.image, cut(source.image, 0))
    assert np.array_equal(tile.labels, cut(source.labels, 6))
    assert np.array_equal(tile.weights, cut(source.weights, 6))


def test_elastic_displacement_equals_pillow_bicubic():
    key = jax.random.key(5)
    grid = 10 * np.asarray(jax.random.normal(key, (2, 3, 3)))
    field = elastic_displacement(key, 572, 10.0)
    for axis in (0, 1):
        expected = Image.fromarray(grid[axis], mode="F").resize(
            (572, 572), Image.Resampling.BICUBIC
        )
        np.testing.assert_allclose(field[axis], expected, atol=1e-4)


def test_elastic_displacement_has_the_stated_strength():
    fields = jax.vmap(lambda key: elastic_displacement(key, 60, 10.0))(
        jax.random.split(jax.random.key(0), 2000)
    )
    std = np.std(fields, axis=(0, 1))
    assert std[30, 30] == pytest.approx(10, rel=0.05)  # a node
    assert np.sqrt(np.mean(std**2)) == pytest.approx(8.94, rel=0.02)  # all pixels
    assert std.min() == pytest.approx(5.62, rel=0.1)
    assert std.max() == pytest.approx(12.8, rel=0.1)


@pytest.mark.parametrize("zoom_octaves", [0.0, 0.5])
def test_image_labels_and_weights_stay_aligned(zoom_octaves):
    """A coarse checkerboard warped as image, as labels and as weights agrees, borders aside."""
    y, x = np.indices((200, 160))
    board = ((y // 20 + x // 20) % 2).astype(np.int32)
    source = Crop(
        image=board[..., None].astype(np.float32),
        labels=board,
        weights=board.astype(np.float32),
        size=np.int32([200, 160]),
    )
    settings = replace(PAPER, contrast_std=0.0, brightness_std=0.0, zoom_octaves=zoom_octaves)

    @jax.jit
    def warp(key):
        return augment(key, source, settings, tile_side=140, context=20)

    for seed in range(5):
        tile = warp(jax.random.key(seed))
        image = np.asarray(tile.image[20:-20, 20:-20, 0])
        certain = (image == 0) | (image == 1)
        assert certain.mean() > 0.8
        assert np.array_equal(image[certain], tile.labels[certain])
        np.testing.assert_array_equal(np.round(image), tile.weights)
        assert 0.2 < image.mean() < 0.8


def test_each_part_does_what_it_says():
    size = np.int32([101, 101])

    def tile(seed, **on):
        settings, key = replace(OFF, **on), jax.random.key(seed)
        return np.asarray(tile_coordinates(key, size, None, settings, tile_side=21, context=4))

    still = tile(0)
    assert np.array_equal(still[0][:, 0], np.arange(40, 61))
    assert np.array_equal(tile(0, mirror_probability=1.0), still[:, :, ::-1])
    for seed in range(20):
        shifted = tile(seed, shift=0.5) - still
        assert (shifted == shifted[:, :1, :1]).all() and (shifted % 1 == 0).all()
        assert abs(shifted).max() <= 25.5
        turned = tile(seed, rotation_degrees=30.0)
        centred = turned - 50
        assert np.allclose((centred**2).sum(0), ((still - 50) ** 2).sum(0), atol=1e-3)
        angle = np.degrees(np.arctan2(centred[0, 10, 20], centred[1, 10, 20]))
        assert abs(angle) <= 30.01
        assert 0.5 < abs(tile(seed, elastic_pixels=1.0) - still).max() < 6
        zoomed = tile(seed, zoom_octaves=0.5) - 50
        factor = zoomed[0, 0, 0] / (still - 50)[0, 0, 0]
        np.testing.assert_allclose(zoomed, factor * (still - 50), atol=1e-4)
        assert 2**-0.5 <= factor <= 2**0.5
    factors = [50 - tile(s, zoom_octaves=1.0)[0, 0, 0] for s in range(40)]
    assert min(factors) < 6 and 15 < max(factors) <= 20, "from half to twice the size"
    angles = [tile(s, rotation_degrees=180.0)[0, 10, 20] for s in range(20)]
    assert np.ptp(angles) > 15
    assert len({tile(s, shift=1.0).tobytes() for s in range(20)}) > 15
    assert {tile(s, mirror_probability=0.5)[1, 0, 0] for s in range(20)} == {40, 60}


def test_shift_reaches_the_whole_image_equally():
    """With mirroring every pixel is seen about as often as any other, the corners too."""
    seen = np.zeros((40, 30))
    tiles = jax.vmap(
        lambda key: tile_coordinates(
            key,
            np.int32([40, 30]),
            None,
            replace(OFF, shift=1.0),
            tile_side=16,
            context=4,
        )
    )(jax.random.split(jax.random.key(0), 4000))
    rows, columns = np.asarray(tiles).astype(int).transpose(1, 0, 2, 3).reshape(2, -1)
    np.add.at(seen, (rows, columns), 1)
    inner = seen[1:-1, 1:-1]  # mirroring does not repeat the edge, which is seen half as often
    assert inner.min() > 0.75 * inner.mean() and inner.max() < 1.25 * inner.mean()


def test_mirrored():
    assert np.array_equal(mirrored(jnp.arange(-4.0, 7), 3), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2])
    assert not mirrored(jnp.linspace(-5, 5, 33), 1).any()


@pytest.mark.parametrize(("order", "dtype"), [(0, np.int32), (0, np.float32), (1, np.float32)])
def test_samples_equal_those_of_scipy(order, dtype):
    rng = np.random.default_rng(0)
    array = rng.integers(-1, 100, (20, 30)).astype(dtype)
    coordinates = rng.uniform(0, [[[19]], [[29]]], (2, 8, 9)).astype(np.float32)
    coordinates[:, :2] = [[[0, 0.5, 1, 18.5, 19, 18, 7, 3, 2]]]  # halves and borders
    expected = ndimage.map_coordinates(array, coordinates, order=order, mode="nearest")

    def at(coordinates):
        return sample(array, coordinates, order=order)

    for found in (at(coordinates), jax.jit(at)(coordinates), jax.vmap(at)(coordinates[None])[0]):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_filled_up_pixels_are_never_seen():
    source = example(30, 20)
    filled = Crop(
        *(
            np.pad(a, [(0, 9), (0, 7)] + [(0, 0)] * (a.ndim - 2), constant_values=99)
            for a in source[:3]
        ),
        source.size,
    )

    @jax.jit
    def warp(key, e):
        return augment(key, e, PAPER, tile_side=60, context=10)

    for seed in range(3):
        small, large = (warp(jax.random.key(seed), e) for e in (source, filled))
        assert all(np.array_equal(a, b) for a, b in zip(small, large, strict=True))


def test_grey_values_vary_by_one_factor_and_one_offset():
    image, settings = example().image, replace(PAPER, contrast_std=0.3, brightness_std=0.5)
    varied = vary_grey_values(jax.random.key(1), image, settings)
    factor, offset = np.polyfit(image.ravel(), np.ravel(varied), 1)
    np.testing.assert_allclose(varied, factor * image + offset, atol=1e-5)
    assert abs(factor - 1) > 0.01 and abs(offset) > 0.01


def test_plain_jitted_and_vmapped_agree():
    source = example()
    keys = jax.random.split(jax.random.key(0), 3)

    def one(key):
        return augment(key, source, PAPER, tile_side=50, context=5)

    plain = [one(key) for key in keys]
    batched = jax.jit(jax.vmap(one))(keys)
    for i, tile in enumerate(plain):
        # Rounding may move a coordinate across the middle between two labels.
        np.testing.assert_allclose(batched.image[i], tile.image, atol=1e-3)
        assert np.mean(batched.labels[i] != tile.labels) < 1e-3
        assert np.mean(batched.weights[i] != tile.weights) < 1e-3


def test_plain_jitted_and_vmapped_corners_of_parts_agree():
    keys = jax.random.split(jax.random.key(0), 50)
    size, places = np.int32([90, 70]), np.int32([[3, 60], [80, 2]])

    def one(key):
        options = dict(part=(40, 50), tile_side=20, context=4)
        return part_corner(key, size, places, **options), part_corner(key, size, **options)

    for corners in zip(*[one(key) for key in keys], strict=True):
        assert corners[0].dtype == jnp.int32
        assert (np.array(corners) >= 0).all() and (np.array(corners) <= size - [40, 50]).all()
    plain = [np.array(corners) for corners in zip(*[one(key) for key in keys], strict=True)]
    jax.tree.map(np.testing.assert_array_equal, list(jax.jit(jax.vmap(one))(keys)), plain)
    jax.tree.map(np.testing.assert_array_equal, list(jax.vmap(one)(keys)), plain)


def test_tiles_of_sparse_images_hold_an_annotated_pixel():
    places = np.int32([[3, 70], [60, 5]])
    source = example()._replace(places=places, labels=np.full((64, 80), -1, np.int32))
    source.labels[tuple(places.T)] = 1, 2
    settings = replace(PAPER, elastic_pixels=0.0)
    seen = jax.vmap(lambda k: augment(k, source, settings, tile_side=44, context=12).labels)(
        jax.random.split(jax.random.key(0), 60)
    )
    # A pixel of a turned image can fall between those of the tile.
    assert np.mean((seen > 0).any(axis=(1, 2))) > 0.7
    zoomed = replace(settings, zoom_octaves=1.0)
    larger = jax.vmap(lambda k: augment(k, source, zoomed, tile_side=44, context=12).labels)(
        jax.random.split(jax.random.key(0), 60)
    )
    assert np.mean((larger > 0).any(axis=(1, 2))) > 0.6
    assert (seen == 1).any() and (seen == 2).any()
    still = replace(OFF, contrast_std=1.0)
    tile = augment(jax.random.key(0), source, still, tile_side=45, context=12)
    assert tile.labels[10, 10] > 0, "without a shift it is the middle"
