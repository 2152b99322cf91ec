import dataclasses
import itertools
import tracemalloc

import jax
import numpy as np
import pytest
from scipy import ndimage

from unet_jax import checkpoint, overlap_tile
from unet_jax.grey_values import grey_value_statistics
from unet_jax.model import Model
from unet_jax.network import UNet, context, init_params
from unet_jax.normalisation import PERCENTILES, normalise
from unet_jax.overlap_tile import predict_block, predict_tiled, tile_probabilities
from unet_jax.resizing import resized
from unet_jax.tiles import side_of_step, tile_step


def he_model(depth=5, channels=1, classes=2, width=4, scale=1.0, seed=0):
    network = UNet(width=width, depth=depth, classes=classes)
    params = init_params(jax.random.key(seed), network, channels)
    params = jax.tree.map(lambda x: x[None], params)
    return Model(network, params, channels, scale, PERCENTILES, {})


@pytest.fixture(scope="module")
def paper():
    return he_model()


@pytest.fixture(scope="module")
def small():
    return he_model(depth=2, width=2)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return (ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5) * 300 + 100).astype("f4")


def whole(model, image):
    """The network on the whole image, mirrored by NumPy; few canvas sizes, as each is compiled."""
    image = image.reshape(*image.shape[:2], -1)
    height, width, _ = image.shape
    margin = context(model.network.depth)
    canvas = next(side for side in (68, 260, 708, 1508) if side >= max(height, width)) + 2 * margin
    normalised = normalise(image, *grey_value_statistics(image))
    after = [(margin, canvas - margin - side) for side in (height, width)]
    mirrored = np.pad(normalised, [*after, (0, 0)], mode="reflect")
    probabilities = tile_probabilities(model.network)(model.params, mirrored[None])
    return np.asarray(probabilities)[0, :height, :width]


def assert_same(tiled, expected):
    assert tiled.shape == expected.shape and tiled.dtype == np.float32
    assert np.abs(tiled - expected).max() < 1e-5
    top = np.sort(expected, axis=-1)
    clear = top[..., -1] - top[..., -2] > 2e-5
    assert np.array_equal(tiled.argmax(-1)[clear], expected.argmax(-1)[clear])


def sizes():
    rng = np.random.default_rng(1)
    tiny = [(1, 1), (1, 2), (2, 1), (3, 3), (1, 57), (58, 1), (5, 16), (17, 16), (20, 59), (4, 4)]
    small = [tuple(rng.integers(1, 260, 2).tolist()) for _ in range(18)]
    medium = [(512, 512), (513, 511), (388, 389), (384, 768 - 92), (1, 700), (700, 3), (572, 572)]
    medium += [tuple(rng.integers(260, 680, 2).tolist()) for _ in range(5)]
    return [
        *[(size, sides) for size in tiny for sides in [(None, 204, 572)]],
        *[(size, sides) for size in small for sides in [(None, 252, 380)]],
        *[(size, sides) for size in medium for sides in [(None, 380, 572)]],
        ((1500, 1100), (None, 572)),
        ((1100, 1500), (444,)),
    ]


@pytest.mark.parametrize(("size", "tile_sides"), sizes())
def test_tiles_equal_the_whole_image(paper, size, tile_sides):
    image = picture(*size)
    expected = whole(paper, image)
    for tile_side in tile_sides:
        assert_same(predict_tiled(paper, image, tile_side=tile_side), expected)


def test_enough_sizes_are_tried():
    assert len({size for size, _ in sizes()}) >= 40


def test_origins_off_the_pooling_grid_are_found_out(paper, monkeypatch):
    image = picture(512, 512)
    expected = whole(paper, image)
    monkeypatch.setattr(overlap_tile, "tile_step", lambda side, depth: side - 2 * context(depth))
    with pytest.raises(AssertionError):
        assert_same(predict_tiled(paper, image, tile_side=572), expected)


def test_two_runs_are_bit_identical(paper):
    image = picture(300, 200)
    runs = [predict_tiled(paper, image, tile_side=252).tobytes() for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_other_depths_channels_and_classes(depth):
    model = he_model(depth, channels=3, classes=4, width=2)
    image = np.stack([picture(50, 41, seed) for seed in range(3)], axis=-1)
    expected = whole(model, image)
    for tile_side in (None, 2 * context(depth) + 20, 2 * context(depth) + 36):
        tiled = predict_tiled(model, image, tile_side=tile_side)
        assert_same(tiled, expected)
        np.testing.assert_allclose(tiled.sum(-1), 1, atol=1e-6)


DTYPES = ["uint8", "uint16", "int32", "float64", "float16", "bool", "int8", ">u2", ">f8", "int64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1e5])
def test_tiles_are_normalised_as_images_are_bit_for_bit(dtype, offset):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo("f2")
    image = (picture(30, 30) / 4 + offset).clip(limits.min, limits.max)
    image = image.astype(dtype if dtype != "bool" else "uint8").astype(dtype)[..., None]
    image[:9] = image[0, 0]
    statistics = grey_value_statistics(image)
    tiles = overlap_tile._normalised(image[None], *statistics)
    assert tiles.dtype == np.float32
    np.testing.assert_array_equal(tiles[0], normalise(image, *statistics))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(small, dtype):
    image = picture(30, 30).clip(0, 255).astype(dtype)
    np.testing.assert_allclose(
        predict_tiled(small, image), whole(small, image.astype("f4")), atol=1e-5
    )
    turned = predict_tiled(small, image, averaging="rotations")
    as_float = predict_tiled(small, image.astype("f4"), averaging="rotations")
    np.testing.assert_allclose(turned, as_float, atol=1e-4)


def test_symmetries_average_what_comes_back(small):
    image = picture(37, 50)
    views = []
    for turns in range(4):
        turned = np.rot90(image, turns)
        views.append(np.rot90(predict_tiled(small, turned), -turns))
        views.append(np.rot90(np.fliplr(predict_tiled(small, np.fliplr(turned))), -turns))
    averaged = predict_tiled(small, image, averaging="symmetries")
    np.testing.assert_allclose(averaged, np.mean(views, axis=0), atol=1e-6)
    assert np.abs(averaged - views[0]).max() > 0.01
    turned = predict_tiled(small, np.rot90(image), averaging="symmetries")
    np.testing.assert_allclose(np.rot90(averaged), turned, atol=1e-5)


def test_the_result_is_written_to_the_array_that_is_given(small, tmp_path):
    image = picture(61, 45)
    for averaging in ("none", "rotations", "symmetries"):
        file = np.memmap(tmp_path / averaging, np.float32, "w+", shape=(61, 45, 2))
        file[:] = 7
        assert predict_tiled(small, image, averaging=averaging, tile_side=44, out=file) is file
        np.testing.assert_array_equal(
            file, predict_tiled(small, image, averaging=averaging, tile_side=44)
        )


@pytest.mark.parametrize("averaging", ["none", "rotations", "symmetries"])
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 3)])
def test_averaging_takes_tiny_images(small, averaging, size):
    result = predict_tiled(small, picture(*size), averaging=averaging)
    assert result.shape == (*size, 2)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("averaging", ["none", "symmetries"])
@pytest.mark.parametrize("size", [(64, 48), (61, 45), (1, 1), (3, 200)])
def test_a_model_of_another_scale_returns_the_size_of_the_input(averaging, size):
    """Shrunken before, grown afterwards: as the same network on an image resized by hand."""
    half = he_model(depth=2, width=2, scale=0.5)
    full = dataclasses.replace(half, scale=1.0)
    image = picture(*size)
    smaller = resized(image, (max(1, round(size[0] / 2)), max(1, round(size[1] / 2))))
    expected = resized(predict_tiled(full, smaller, averaging=averaging), size)
    result = predict_tiled(half, image, averaging=averaging)
    assert result.shape == (*size, 2) and result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


def test_probabilities_that_are_made_smaller_do_not_exceed_1():
    model = he_model(depth=2, width=2, scale=1.5)
    sure = jax.tree.map(lambda x: 1e4 * x, model.params["classes"])
    model = dataclasses.replace(model, params=model.params | {"classes": sure})
    found = predict_tiled(model, picture(100, 100))
    assert found.max() == 1 and found.min() == 0


def test_a_scale_with_several_channels():
    model = he_model(depth=2, width=2, channels=3, scale=0.5)
    assert predict_tiled(model, np.dstack([picture(40, 50)] * 3)).shape == (40, 50, 2)


def test_an_ensemble_is_the_mean_of_its_members():
    members = [he_model(depth=2, width=2, seed=seed) for seed in range(3)]
    together = checkpoint.ensemble(members)
    image = picture(70, 50)
    for averaging in ("none", "rotations"):
        alone = [predict_tiled(member, image, averaging=averaging) for member in members]
        assert np.abs(alone[0] - alone[1]).max() > 0.01
        result = predict_tiled(together, image, averaging=averaging)
        np.testing.assert_allclose(result, np.mean(alone, axis=0), atol=1e-6)


def test_one_compilation_for_each_tile_side():
    model = he_model(depth=2, width=3)
    compiled = tile_probabilities(model.network)
    before = compiled._cache_size()
    for size in [(10, 10), (100, 31), (64, 200)]:
        for averaging in ("none", "rotations", "symmetries"):
            predict_tiled(model, picture(*size), tile_side=44, averaging=averaging)
    assert compiled._cache_size() == before + 1


def test_memory_beyond_input_and_output_does_not_grow(small):
    def extra(side, averaging):
        image = picture(side, side)
        predict_tiled(small, image[:50, :50], tile_side=148, averaging=averaging)
        tracemalloc.start()
        output = predict_tiled(small, image, tile_side=148, averaging=averaging)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak - output.nbytes

    for averaging in ("none", "symmetries", "rotations"):
        # The statistics take chunks of 2^17 pixels: both images are larger.
        assert extra(800, averaging) < 1.1 * extra(400, averaging)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 5, 1)), r"\[H, W\], not one of shape \[5, 5, 1\]"),
        (np.zeros((2, 5, 5)), r"\[H, W\], not one of shape \[2, 5, 5\]"),
        (np.zeros((0, 5)), r"\[H, W\], not one of shape \[0, 5\]"),
        (np.full((3, 3), np.nan), "NaN"),
        (np.array([[np.inf, -np.inf]]), "infinite"),
        (np.array([[1e300, 0]]), "huge"),
        (np.zeros((3, 3), complex), "complex"),
    ],
)
def test_bad_images_are_refused(small, image, message):
    with pytest.raises(ValueError, match=message):
        predict_tiled(small, image)


MASKED = np.ma.masked_less(np.arange(12.0).reshape(3, 4), 3)


@pytest.mark.parametrize(
    "image", [MASKED, list(MASKED), tuple(map(list, MASKED)), np.ma.array(np.ones((3, 4)))]
)
def test_what_a_masked_array_hides_is_not_taken_for_measured(small, image):
    with pytest.raises(
        ValueError, match=r"does not take a masked array, .* give image.filled\(value\)"
    ):
        predict_tiled(small, image)
    assert predict_tiled(small, MASKED.filled(3).tolist()).shape == (3, 4, 2)


def test_a_multi_channel_model_names_both_shapes():
    model = he_model(depth=1, channels=3, width=1)
    for shape in [(4, 4), (4, 4, 2)]:
        with pytest.raises(ValueError, match=r"\[H, W, 3\], not one of shape \[4, 4"):
            predict_tiled(model, np.zeros(shape))


def test_bad_settings_are_refused(paper):
    image = picture(20, 20)
    with pytest.raises(ValueError, match="nearest valid ones: 396, 412"):
        predict_tiled(paper, image, tile_side=400)
    with pytest.raises(ValueError, match="nearest valid ones: 204"):
        predict_tiled(paper, image, tile_side=188)
    with pytest.raises(ValueError, match="none, rotations, symmetries, not 'mean'"):
        predict_tiled(paper, image, averaging="mean")


def test_progress_bar_only_on_long_work(small, monkeypatch):
    bars = []
    monkeypatch.setattr(overlap_tile, "tqdm", lambda tiles, **how: bars.append(how) or tiles)
    predict_tiled(small, picture(40, 90), tile_side=44)
    (bar,) = bars
    assert bar["delay"] == 3 and bar["total"] == 2 * 4  # tiles of 26 pixels


@pytest.mark.parametrize("averaging", ["none", "symmetries"])
@pytest.mark.parametrize(("depth", "dtype"), [(3, np.uint8), (4, np.float32), (5, np.uint16)])
def test_blocks_are_bit_for_bit_those_of_the_whole(depth, dtype, averaging):
    network = UNet(width=2, depth=depth)
    model = Model.of(network, init_params(jax.random.key(depth), network, 1))
    image = np.random.default_rng(depth).integers(0, 255, (157, 203)).astype(dtype)
    side = side_of_step(64, depth)
    assert tile_step(side, depth) == 64
    whole = predict_tiled(model, image, tile_side=side, averaging=averaging)
    statistics = grey_value_statistics(image[..., None])
    blocks = np.zeros_like(whole)
    for top, left in itertools.product(range(0, 157, 128), range(0, 203, 128)):
        block = slice(top, min(top + 128, 157)), slice(left, min(left + 128, 203))
        blocks[block] = predict_block(
            model, image[..., None], *block, statistics, tile_side=side, averaging=averaging
        )
    np.testing.assert_array_equal(blocks, whole)


def test_a_block_reads_no_more_than_its_tiles_see():
    network = UNet(width=2, depth=3)
    model = Model.of(network, init_params(jax.random.key(0), network, 1))

    class Plane:
        shape = (10_000, 10_000, 1)

        def __getitem__(self, part):
            rows, columns = part
            self.read = rows, columns
            return np.zeros((rows.stop - rows.start, columns.stop - columns.start, 1), np.uint8)

    plane, block = Plane(), slice(5120, 5120 + 256)
    side = side_of_step(128, 3)
    predict_block(model, plane, block, block, (np.zeros(1), np.ones(1)), tile_side=side)
    after = side - context(3) - 128
    around = max(context(3), after)
    assert plane.read == (slice(5120 - around, 5120 + 256 + around),) * 2
