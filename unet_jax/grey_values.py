"""The grey values of an image: whether they are valid, and what the normalisation needs of them.

Mean and standard deviation are exact, and the same in whatever order the pixels are read.
"""

from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np

from unet_jax.compiled import compiled
from unet_jax.normalisation import PERCENTILES

#: Beyond it, sums of float32 grey values are not finite any more.
MAX_GREY_VALUE = np.float32(1e30)
# In standard deviations. The hottest pixel of a 16-bit camera stays below it; a marker such as
# 1e20 for "no value" does not, and would ruin what the network sees and learns around it.
_MAX_DISTANCE = 1e6
# Pixels at a time; more do not fit the processor's cache.
_CHUNK = 2**17


def are_grey_values(image: np.ndarray) -> bool:
    """Whether all pixels of a real image are finite and at most `MAX_GREY_VALUE` in size."""
    # NaN is the least and the largest of all; so no memory of the image's size is needed.
    extremes = np.array([image.min(), image.max()], float)
    return bool((np.abs(extremes) <= MAX_GREY_VALUE).all())


def grey_value_statistics(
    image: np.ndarray, percentiles: tuple[float, float] = PERCENTILES
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the pixels between two percentiles, ends included.

    Reads the image in chunks, so that an image as large as the memory can be normalised.

    Args:
      image: real [H, W, C], at most `MAX_GREY_VALUE` in size, taken as float32.
      percentiles: the lower and the upper one, in percent.

    Returns:
      Two float64 [C]. Where all those pixels are equal, they are of all pixels; the standard
      deviation is 0 where these are equal, too.

    Raises:
      ValueError: a pixel is more than 1e6 standard deviations away from the mean.
    """
    return statistics_of_parts(lambda: [image], percentiles)


def statistics_of_parts(
    parts: Callable[[], Iterable[np.ndarray]], percentiles: tuple[float, float] = PERCENTILES
) -> tuple[np.ndarray, np.ndarray]:
    """`grey_value_statistics` of an image that need not be in memory as a whole.

    Args:
      parts: gives the parts of the image, real [h, w, C] of one dtype, in any order; it is called
        once for the first part alone, and then for each channel once for integers of up to 16 bits,
        three times for other numbers; twice as often if nearly all pixels are equal.
      percentiles: as for `grey_value_statistics`.
    """
    first = next(iter(parts()))
    few_values = first.dtype.kind in "biu" and first.dtype.itemsize <= 2
    sums = _counted if few_values else _searched

    def statistics(channel):
        def parts_of_channel():
            return (part[..., channel] for part in parts())

        found = sums(parts_of_channel, percentiles)
        (least, largest), *_, squares = found
        if squares == 0 and least < largest:  # a few cells on an even background
            found = sums(parts_of_channel, (0.0, 100.0))
        return _mean_and_std(*found)

    means, stds = np.array([*map(statistics, range(first.shape[-1]))]).T
    return means, stds


def _mean_and_std(extremes, low, count, total, squares):
    if count == 0:  # two pixels, which are equal
        return low, 0.0
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0))
    for extreme in extremes:
        if std > 0 and abs(extreme - low - mean) > _MAX_DISTANCE * std:
            raise ValueError(
                f"holds a pixel of {extreme:g}, but most are about {low + mean:.3g} with a "
                f"standard deviation of {std:.3g}; expected all within {_MAX_DISTANCE:g} standard "
                "deviations; replace such pixels, for example by the median"
            )
    return low + mean, std


# Both return, of one channel, the least and the largest grey value, that of the lower rank and, of
# the pixels from there to that of the upper rank, their number and the sums of their distances from
# it and of the squares of these. In another order the pixels give the same bits.


def _counted(parts, percentiles):
    """Of integers of up to 16 bits, from one histogram."""
    histogram, least = np.zeros(0, np.int64), 0
    for part in parts():
        dtype = np.dtype(np.uint8) if part.dtype == bool else part.dtype.newbyteorder("=")
        if not histogram.size:
            histogram, least = np.zeros(2 ** (8 * dtype.itemsize), np.int64), np.iinfo(dtype).min
        for chunk in _chunks(part, dtype):
            _count(chunk, least, histogram)
    values = np.flatnonzero(histogram)
    low, high = np.searchsorted(
        np.cumsum(histogram), _ranks(percentiles, histogram.sum()), side="right"
    )
    inside = histogram[low : high + 1].astype(float)
    distances = np.arange(inside.size)
    count, total, squares = ((inside * distances**power).sum() for power in range(3))
    extremes = least + float(values[0]), least + float(values[-1])
    return extremes, float(least + low), count, total, squares


@compiled
def _count(values, least, histogram):
    for value in values:
        histogram[np.uintp(value - least)] += 1  # without a sign, half the time


def _searched(parts, percentiles):
    """Of any real numbers, taken as float32: a radix search of the ranks, then the sums."""
    least, largest = np.inf, -np.inf
    upper = np.zeros(2**16, np.int64)
    for part in parts():
        least, largest = min(least, float(part.min())), max(largest, float(part.max()))
        for chunk in _chunks(part):
            upper += np.bincount((_sortable(chunk) >> 16) + 2**15, minlength=2**16)
    ends = np.cumsum(upper)
    ranks = _ranks(percentiles, ends[-1])
    buckets = np.searchsorted(ends, ranks, side="right")
    lower = np.zeros((2, 2**16), np.int64)
    for chunk in chain.from_iterable(map(_chunks, parts())):
        keys = _sortable(chunk)
        for counts, bucket in zip(lower, buckets - 2**15, strict=True):
            counts += np.bincount(keys[keys >> 16 == bucket] & 0xFFFF, minlength=2**16)
    within = ranks - (ends - upper)[buckets]
    places = [np.searchsorted(np.cumsum(n), r, "right") for n, r in zip(lower, within, strict=True)]
    keys = ((buckets - 2**15) << 16 | np.array(places)).astype(np.int32)
    low, high = _sortable(keys.view(np.float32)).view(np.float32).astype(float)
    spread = high - low or 1.0  # all distances are 0
    # Whole numbers, whose sums are the same in any order: steps of 2^-42 of the spread.
    count = total = squares = 0
    for chunk in chain.from_iterable(map(_chunks, parts())):
        inside = (chunk >= low) & (chunk <= high)
        distances = np.where(inside, (chunk.astype(float) - low) / spread, 0)
        count += int(np.count_nonzero(inside))
        total += int(np.rint(distances * 2**42).astype(np.int64).sum())
        squares += int(np.rint(np.square(distances) * 2**42).astype(np.int64).sum())
    return (least, largest), low, count, total / 2**42 * spread, squares / 2**42 * spread**2


def _ranks(percentiles, size):
    """The pixels between two interpolated percentiles are those between these two ranks."""
    low, high = np.array(percentiles) / 100 * (size - 1)
    return np.array([np.ceil(low), np.floor(high)], np.int64)


def _chunks(channel, dtype=np.float32):
    return np.nditer(
        channel,
        flags=["external_loop", "buffered"],
        op_dtypes=[dtype],
        casting="unsafe",
        buffersize=_CHUNK,
    )


def _sortable(values):
    """int32 keys that sort as the float32 values do; the keys of keys are the values' bits."""
    bits = values.view(np.int32)
    return bits ^ (bits >> 31 & 0x7FFFFFFF)
