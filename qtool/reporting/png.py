"""Writes small pictures as PNG (https://www.w3.org/TR/png-3/), for pages that hold them inside."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from qtool.calib.specs import Array

_LONGEST_SIDE = 96
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 3: 2}


def thumbnail(picture: Array) -> bytes:
    """Returns a picture as PNG of at most 96 pixels a side; its shape is (height, width, 1 or 3).

    Its lowest value becomes black and its highest white, since nothing tells how it was normalized.
    """
    height, width, channels = picture.shape
    step = max(1, -(-max(height, width) // _LONGEST_SIDE))
    small = picture[::step, ::step]
    low, high = float(small.min()), float(small.max())
    pixels = np.rint((small - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    # Every row begins with the number of its filter; 0 is none.
    rows = np.concatenate([np.zeros((len(pixels), 1), np.uint8), pixels.reshape(len(pixels), -1)], axis=1)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return _SIGNATURE + b"".join(
        _chunk(kind, data)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
