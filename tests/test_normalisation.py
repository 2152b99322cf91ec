import tracemalloc

import numpy as np
import pytest

from unet_jax import grey_values
from unet_jax.grey_values import grey_value_statistics, statistics_of_parts
from unet_jax.normalisation import normalise


def by_numpy(channel, percentiles=(1, 99)):
    low, high = np.percentile(channel.astype(np.float32).astype(float), percentiles)
    inside = channel[(channel >= low) & (channel <= high)].astype(float)
    return inside.mean(), inside.std()


def images():
    rng = np.random.default_rng(0)
    return {
        "uint8": rng.integers(0, 256, (60, 70)).astype(np.uint8),
        "uint16": rng.integers(0, 65536, (61, 30)).astype(np.uint16),
        "few values": rng.integers(-3, 3, (20, 30)),
        "float with an offset": (rng.normal(size=(40, 50)) - 1e4).astype(np.float32),
        "signs": rng.normal(size=(41, 50)).astype(np.float32),
        "heavy tails": rng.standard_cauchy((50, 50)).astype(np.float32),
        "bool": rng.random((30, 30)) > 0.5,
        "int8": rng.integers(-128, 128, (31, 20)).astype(np.int8),
        "int16": rng.integers(-32768, 32768, (31, 20)).astype(np.int16),
        "big-endian": rng.integers(1000, 30000, (31, 20)).astype(">u2"),
        "big-endian float": rng.normal(size=(31, 20)).astype(">f4"),
        "zeros of both signs": np.copysign(rng.integers(0, 2, (31, 20)), -1).astype(np.float32),
        "a view": rng.normal(size=(90, 80)).astype(np.float32)[::-2, 3:40].T,
    }


@pytest.mark.parametrize("name", images())
def test_statistics_equal_numpy(name):
    image = images()[name]
    mean, std = grey_value_statistics(image[..., None])
    expected_mean, expected_std = by_numpy(image)
    assert mean[0] == pytest.approx(expected_mean, rel=1e-6, abs=1e-6)
    assert std[0] == pytest.approx(expected_std, rel=1e-5)


@pytest.mark.parametrize("name", images())
def test_the_order_of_the_pixels_changes_no_bit(name, monkeypatch):
    pixels = images()[name].ravel()
    expected = grey_value_statistics(pixels[None, :, None])
    for chunk in (7, 100):
        monkeypatch.setattr(grey_values, "_CHUNK", chunk)
        pixels = np.random.default_rng(chunk).permutation(pixels)
        np.testing.assert_array_equal(grey_value_statistics(pixels[None, :, None]), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_integers_have_the_statistics_of_the_same_floats(bits):
    image = np.random.default_rng(1).integers(0, 2**bits, (200, 300, 1)).astype(f"u{bits // 8}")
    as_float = grey_value_statistics(image.astype(np.float32))
    np.testing.assert_allclose(grey_value_statistics(image), as_float, rtol=1e-12)


def test_an_outlier_between_the_percentiles_leaves_the_others_their_digits():
    image = np.random.default_rng(2).normal(size=(300, 300, 1)).astype(np.float32)
    image[7, 7] = 1e5
    expected = image.astype(float)
    mean, std = grey_value_statistics(image, (0.0, 100.0))
    assert mean[0] == pytest.approx(expected.mean(), rel=1e-9)
    assert std[0] == pytest.approx(expected.std(), rel=1e-9)


def test_other_percentiles():
    image = images()["heavy tails"]
    mean, std = grey_value_statistics(image[..., None], (20.0, 70.0))
    assert (mean[0], std[0]) == pytest.approx(by_numpy(image, (20, 70)), rel=1e-5)


def test_one_outlier_changes_nothing_and_nothing_is_clipped():
    image = images()["uint16"][..., None].astype(np.float32)
    spoilt = image.copy()
    spoilt[5, 5] = 1e9
    clean_statistics, statistics = grey_value_statistics(image), grey_value_statistics(spoilt)
    np.testing.assert_allclose(statistics, clean_statistics, rtol=2e-3)
    assert normalise(spoilt, *statistics)[5, 5, 0] > 1e4


@pytest.mark.parametrize("far", [-3e9, 3e9])
def test_a_pixel_beyond_a_million_standard_deviations_is_refused(far):
    image = np.zeros((30, 30, 1), np.float32)
    image[::2] = 2000
    image[5, 5] = 9e8
    assert grey_value_statistics(image)[1] == pytest.approx(1000, rel=1e-3)
    image[5, 5] = far
    with pytest.raises(ValueError, match="expected all within"):
        grey_value_statistics(image)


def test_channels_are_independent_and_normalised():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(50, 50, 2)) * [3, 500] + [10, -70]
    result = normalise(image, *grey_value_statistics(image))
    assert result.dtype == np.float32
    for channel in (0, 1):
        assert by_numpy(result[..., channel]) == pytest.approx((0, 1), abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 3), (20, 20)])
def test_constant_and_tiny_images_become_finite(shape):
    constant = np.full((*shape, 1), 7.0)
    assert not normalise(constant, *grey_value_statistics(constant)).any()
    ramp = np.arange(np.prod(shape), dtype=float).reshape(*shape, 1)
    assert np.isfinite(normalise(ramp, *grey_value_statistics(ramp))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_few_cells_on_an_even_background_stay(dtype):
    image = np.zeros((100, 100, 1), dtype)
    image[10:13, 10:13] = 150
    result = normalise(image, *grey_value_statistics(image))
    np.testing.assert_allclose(result, (image - image.mean()) / image.std(), rtol=1e-5)
    assert result.max() > 10
    other = image + dtype(1)  # between the percentiles nothing changes but the background
    np.testing.assert_allclose(normalise(other, *grey_value_statistics(other)), result, rtol=1e-5)


def test_memory_does_not_grow_with_the_image():
    def peak(side):
        image = np.zeros((side, side, 1), np.float32)
        image[::2] = 1
        tracemalloc.start()
        grey_value_statistics(image)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    assert peak(3000) < 1.1 * peak(1500)


@pytest.mark.parametrize("name", images())
def test_the_parts_of_an_image_have_the_statistics_of_the_whole(name):
    image = np.stack([images()[name], images()[name][::-1] // 2], axis=-1)
    parts = [*np.array_split(image, 3, axis=1), image[:0]]
    parts[1:3] = np.array_split(parts[1], [1], axis=0) + [parts[2]]
    np.testing.assert_array_equal(
        statistics_of_parts(lambda: iter(parts[::-1][1:])), grey_value_statistics(image)
    )
