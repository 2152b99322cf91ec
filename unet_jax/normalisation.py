"""Grey value normalisation: one rule for training and prediction, stored with the checkpoint.

Per image and channel over the whole image, never per tile: subtract the mean and divide by the
standard deviation of the pixels between two percentiles, so that a few hot or dead pixels change
nothing. Nothing is clipped; what is too far from all others to be a grey value is refused.
"""

import numpy as np

#: The percentiles that bound the pixels counted.
PERCENTILES = (1.0, 99.0)
#: Beyond it, sums of float32 grey values are not finite any more.
MAX_GREY_VALUE = np.float32(1e30)
# In standard deviations. The hottest pixel of a 16-bit camera stays below it; a marker such as
# 1e20 for "no value" does not, and would ruin what the network sees and learns around it.
_MAX_DISTANCE = 1e6


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


def normalise(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """float32 (image - mean) / std for an image or tile [..., C]; 0 where std is 0."""
    scale = np.divide(1, std, out=np.zeros_like(std), where=std > 0)
    return ((image - mean) * scale).astype(np.float32)


def _channel_statistics(channel, percentiles):
    ranks = np.array(percentiles) / 100 * (channel.size - 1)
    # The pixels between two interpolated percentiles are those between these two ranks.
    low, high = _ranked(channel, int(np.ceil(ranks[0]))), _ranked(channel, int(ranks[1]))
    count = total = squares = 0.0
    extremes = [low, high]
    for chunk in _chunks(channel):
        extremes = [min(extremes[0], chunk.min()), max(extremes[1], chunk.max())]
        # Around `low`: the squares of large grey values would lose the digits of a small spread.
        inside = chunk[(chunk >= low) & (chunk <= high)].astype(np.float64) - low
        count, total, squares = (
            count + inside.size,
            total + inside.sum(),
            squares + np.square(inside).sum(),
        )
    if count == 0:  # an image of two pixels
        return float(low), 0.0
    mean = total / count
    std = np.sqrt(max(squares / count - mean**2, 0.0))
    for extreme in map(float, extremes):
        if std > 0 and abs(extreme - low - mean) > _MAX_DISTANCE * std:
            raise ValueError(
                f"holds a pixel of {extreme:g}, most are about {low + mean:.3g} with a standard "
                f"deviation of {std:.3g}, expected none beyond {_MAX_DISTANCE:g} of these; replace "
                "such pixels, by the median for example"
            )
    return low + mean, std


def _ranked(channel, rank):
    """The float32 grey value with `rank` smaller or equal ones before it, by a radix search."""
    upper = np.zeros(2**16, np.int64)
    for chunk in _chunks(channel):
        upper += np.bincount(_sortable(chunk) >> 16, minlength=2**16)
    bucket = np.searchsorted(np.cumsum(upper), rank, side="right")
    lower = np.zeros(2**16, np.int64)
    for chunk in _chunks(channel):
        keys = _sortable(chunk)
        lower += np.bincount(keys[keys >> 16 == bucket] & 0xFFFF, minlength=2**16)
    position = np.searchsorted(np.cumsum(lower), rank - upper[:bucket].sum(), side="right")
    key = np.uint32(bucket << 16 | position)
    bits = key ^ np.uint32(0x80000000) if key >> 31 else ~key
    return np.float32(bits.view(np.float32))


def _chunks(channel):
    return np.nditer(
        channel,
        flags=["external_loop", "buffered"],
        op_dtypes=[np.float32],
        casting="unsafe",
        buffersize=2**20,
    )


def _sortable(values):
    """uint32 keys that sort as the float32 values do."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
