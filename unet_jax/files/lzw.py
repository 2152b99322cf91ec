"""LZW data of TIFF files, checked before it is given to a decoder that it might crash.

For some damaged data, imagecodecs reads memory that was never written; 2026.10.10, which needs
Python 3.12, is the first version that does not. Once that is the oldest one supported, this file
can go.
"""

import numpy as np

from unet_jax.compiled import compiled


@compiled
def is_sound(data: np.ndarray) -> bool:
    """Whether each code that clears the table is followed by a pixel, not a sequence of pixels.

    The codes and their widths are those of the TIFF 6.0 specification, section 13, or of older
    files, whose first byte is 0.

    Args:
      data: uint8 [bytes], not empty.
    """
    is_old = data[0] == 0
    position, width, entries, is_cleared = 0, 9, 258, False
    while position + width <= 8 * data.size:
        byte, bit = position // 8, position % 8
        third = np.int64(data[byte + 2]) if byte + 2 < data.size else 0
        if is_old:
            code = (data[byte] | np.int64(data[byte + 1]) << 8 | third << 16) >> bit
        else:
            code = np.int64(data[byte]) << 16 | np.int64(data[byte + 1]) << 8 | third
            code >>= 24 - bit - width
        code &= (1 << width) - 1
        position += width
        if code == 256:
            width, entries, is_cleared = 9, 258, True
        elif code == 257:
            return True
        elif is_cleared:
            if code > 257:
                return False
            is_cleared = False
        else:
            entries += 1
            if width < 12 and entries >= (1 << width) - (not is_old):
                width += 1
    return True
