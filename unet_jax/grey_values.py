"""The grey values of an image: whether they are such, and what the normalisation needs of them.

Mean and standard deviation are exact, and the same in whatever order the pixels are read.
"""

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
      percentiles: lower and upper one, in percent.

    Returns:
      Two float64 [C]; the standard deviation is 0 where all those pixels are equal.

    Raises:
      ValueError: a pixel is more than 1e6 standard deviations away from the mean.
    """
    statistics = [_channel_statistics(image[..., c], percentiles) for c in range(image.shape[-1])]
    means, stds = np.array(statistics).T
    return means, stds


def _channel_statistics(channel, percentiles):
    # The pixels between two interpolated percentiles are those between these two ranks.
    low_rank, high_rank = np.array(percentiles) / 100 * (channel.size - 1)
    ranks = int(np.ceil(low_rank)), int(high_rank)
    extremes = float(channel.min()), float(channel.max())
    few_values = channel.dtype.kind in "biu" and channel.dtype.itemsize <= 2
    low, count, total, squares = (_counted if few_values else _searched)(channel, ranks)
    if count == 0:  # an image of two pixels
        return low, 0.0
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0))
    for extreme in extremes:
        if std > 0 and abs(extreme - low - mean) > _MAX_DISTANCE * std:
            raise ValueError(
                f"holds a pixel of {extreme:g}, most are about {low + mean:.3g} with a standard "
                f"deviation of {std:.3g}, expected none beyond {_MAX_DISTANCE:g} of these; replace "
                "such pixels, by the median for example"
            )
    return low + mean, std


# Both return the grey value of the lower rank and, of the pixels from there to that of the upper
# rank, their number and the sums of their distances from it and of the squares of these. In another
# order the pixels give the same bits.


def _counted(channel, ranks):
    """Of integers of up to 16 bits, from one histogram."""
    dtype = np.dtype(np.uint8) if channel.dtype == bool else channel.dtype.newbyteorder("=")
    least, largest = int(channel.min()), int(channel.max())
    histogram = np.zeros(largest - least + 1, np.int64)
    for chunk in _chunks(channel, dtype):
        _count(chunk, least, histogram)
    low, high = np.searchsorted(np.cumsum(histogram), ranks, side="right")
    inside = histogram[low : high + 1].astype(float)
    distances = np.arange(inside.size)
    count, total, squares = ((inside * distances**power).sum() for power in range(3))
    return float(least + low), count, total, squares


@compiled
def _count(values, least, histogram):
    for value in values:
        histogram[np.uintp(value - least)] += 1  # without a sign, half the time


def _searched(channel, ranks):
    """Of any real numbers, taken as float32: a radix search of the ranks, then the sums."""
    upper = np.zeros(2**16, np.int64)
    for chunk in _chunks(channel):
        upper += np.bincount((_sortable(chunk) >> 16) + 2**15, minlength=2**16)
    ends = np.cumsum(upper)
    buckets = np.searchsorted(ends, ranks, side="right")
    lower = np.zeros((2, 2**16), np.int64)
    for chunk in _chunks(channel):
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
    for chunk in _chunks(channel):
        inside = (chunk >= low) & (chunk <= high)
        distances = np.where(inside, (chunk.astype(float) - low) / spread, 0)
        count += int(np.count_nonzero(inside))
        total += int(np.rint(distances * 2**42).astype(np.int64).sum())
        squares += int(np.rint(np.square(distances) * 2**42).astype(np.int64).sum())
    return low, count, total / 2**42 * spread, squares / 2**42 * spread**2


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
