"""Decoding of PNG files."""

import math
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np

from unet_jax.errors import one_line
from unet_jax.files.decoding import check_declared, check_palette, decoding, notice, refusal

#: What a PNG file begins with.
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE = 3
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # of each colour type


def decode_png(path: Path, is_mask: bool) -> tuple[np.ndarray, bool]:
    """Returns the pixels [1, H, W, C], and whether the last channel is alpha."""
    with decoding(path):
        data = path.read_bytes()
        chunks = _read_chunks(path, data)
        width, height, bits, colour_type = struct.unpack_from(">IIBB", data, 16)
        channels = _CHANNELS.get(colour_type, 1)  # others are refused by libpng
        is_palette = colour_type == _PALETTE
        is_number = (is_palette and bits <= 8) or (is_mask and not colour_type and bits in (2, 4))
        if is_palette:
            colours = b"".join(content for kind, content in chunks if kind == b"PLTE")
            check_palette(path, np.frombuffer(colours, np.uint8).reshape(-1, 3), is_mask)
        elif is_number:
            notice(path.parent, "the numbers in PNG masks of 2 or 4 bits are read as stored")
        if is_number:
            data = _as_grey(chunks)
        elif channels in (1, 3) and b"tRNS" in dict(chunks):  # a transparent colour becomes alpha
            channels += 1
        shape = (height, width) if channels == 1 else (height, width, channels)
        dtype = np.dtype(np.uint16 if bits == 16 else np.uint8)
        check_declared(path, math.prod(shape) * dtype.itemsize)
        pixels = np.empty(shape, dtype)
        try:
            imagecodecs.png_decode(data, out=pixels)
        except Exception as error:
            # After an error of libpng imagecodecs 2026.3.6 never lets go of the array. An array of
            # its own would be lost too, and a count of None that Python 3.11 one day misses.
            pixels.resize(0, refcheck=False)
            # Where a chunk is wrong, the text is gone and its bytes are arbitrary.
            is_text = str(error).isprintable() and not isinstance(error, UnicodeError)
            reason = one_line(error) if is_text else "a chunk is out of place or of a wrong size"
            raise refusal(path, f"cannot be decoded because it is damaged ({reason})") from error
    if is_number:
        pixels //= 255 // (2**bits - 1)  # libpng scales grey to 0..255
    return pixels.reshape(1, height, width, channels), channels in (2, 4)


def _read_chunks(path: Path, data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each PNG chunk, after comparing their checksums.

    libpng lets some damage pass and only prints a line.
    """
    position, kind, chunks = len(SIGNATURE), b"", []
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, position)
            end = position + 8 + length
            (checksum,) = struct.unpack_from(">I", data, end)
            if checksum != zlib.crc32(data[position + 4 : end]):
                raise refusal(path, f"is damaged: chunk {kind!r} does not match its checksum")
            chunks.append((kind, data[position + 8 : end]))
            position = end + 4
    except struct.error as error:
        raise refusal(
            path, f"is truncated at {len(data):,} bytes, expected the end of a PNG image"
        ) from error
    return chunks


def _as_grey(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The PNG without its palette and transparency; its grey levels are the numbers stored."""
    parts = [SIGNATURE]
    for kind, content in chunks:
        if kind == b"IHDR":
            content = content[:9] + b"\0" + content[10:]  # the colour type
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            checksum = struct.pack(">I", zlib.crc32(kind + content))
            parts += [struct.pack(">I", len(content)), kind, content, checksum]
    return b"".join(parts)
