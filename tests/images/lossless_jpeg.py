"""Writes lossless JPEGs (ITU-T T.81, annex H), which no installed program does."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

# (left, above, above left) -> prediction, by its number in the scan header.
_PREDICTORS: dict[int, Callable[[int, int, int], int]] = {
    1: lambda a, b, c: a,
    2: lambda a, b, c: b,
    3: lambda a, b, c: c,
    4: lambda a, b, c: a + b - c,
    5: lambda a, b, c: a + (b - c >> 1),
    6: lambda a, b, c: b + (a - c >> 1),
    7: lambda a, b, c: a + b >> 1,
}


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def lossless(samples: NDArray[np.uint8], predictor: int = 1, before: bytes = b"") -> bytes:
    """A lossless JPEG of samples (H, W, 1 or 3); three channels are red, green and blue."""
    height, width, channels = samples.shape
    # 17 categories of differences, with codes of 5 bits.
    table = bytes((0,)) + bytes((0, 0, 0, 0, 17)) + bytes(11) + bytes(range(17))
    frame = struct.pack(">BHHB", 8, height, width, channels)
    frame += b"".join(bytes((i + 1, 0x11, 0)) for i in range(channels))
    scan = bytes((channels,)) + b"".join(bytes((i + 1, 0)) for i in range(channels))
    scan += bytes((predictor, 0, 0))
    bits = ""
    for y in range(height):
        for x in range(width):
            for channel in range(channels):
                plane = samples[:, :, channel].astype(int)
                if y == 0:
                    guess = 128 if x == 0 else int(plane[0, x - 1])
                elif x == 0:
                    guess = int(plane[y - 1, 0])
                else:
                    neighbors = plane[y, x - 1], plane[y - 1, x], plane[y - 1, x - 1]
                    guess = _PREDICTORS[predictor](*(int(n) for n in neighbors))
                difference = int(plane[y, x]) - guess
                size = abs(difference).bit_length()
                bits += f"{size:05b}"
                if size:
                    low = difference if difference > 0 else difference + (1 << size) - 1
                    bits += f"{low:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    stream = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    head = b"\xff\xd8" + before + segment(0xC3, frame) + segment(0xC4, table)
    return head + segment(0xDA, scan) + stream + b"\xff\xd9"
