"""Writes PNG files of every kind, chunk by chunk, and gives their pixels by the specification."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
# Color type and bit depth of every PNG that exists.
KINDS = [
    *((GRAY, depth) for depth in (1, 2, 4, 8, 16)),
    *((PALETTE, depth) for depth in (1, 2, 4, 8)),
    *((color, depth) for color in (RGB, GRAY_ALPHA, RGBA) for depth in (8, 16)),
]
# Adam7: first column, first row, and the steps of each pass.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES += ((0, 1, 1, 2),)  # type: ignore[assignment]


def chunk(name: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """A chunk with its checksum, or with another."""
    checksum = zlib.crc32(name + body) if crc is None else crc
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)


def header(width: int, height: int, depth: int, color: int, interlaced: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))


def pack(samples: NDArray[Any], depth: int) -> list[bytes]:
    """The rows of samples (H, W, C) as bytes, without filters."""
    rows = samples.reshape(samples.shape[0], -1)
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in rows]
    if depth == 8:
        return [row.astype(np.uint8).tobytes() for row in rows]
    bits = ((rows[:, :, None] >> np.arange(depth - 1, -1, -1)) & 1).astype(np.uint8)
    return [np.packbits(row.reshape(-1)).tobytes() for row in bits]


def filtered(rows: Sequence[bytes], step: int, first: int) -> bytes:
    """The rows with filters 0 to 4 in rotation; ``step`` bytes between equal samples."""
    out = b""
    previous = bytes(len(rows[0]))
    for number, row in enumerate(rows):
        kind = (first + number) % 5
        line = bytearray([kind])
        for i, value in enumerate(row):
            left = row[i - step] if i >= step else 0
            up, corner = previous[i], previous[i - step] if i >= step else 0
            line.append((value - _prediction(kind, left, up, corner)) & 255)
        out += bytes(line)
        previous = row
    return out


def _prediction(kind: int, left: int, up: int, corner: int) -> int:
    if kind < 4:
        return (0, left, up, (left + up) // 2)[kind]
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(estimate - value))


def write(
    samples: NDArray[Any],
    depth: int,
    color: int,
    *,
    interlaced: bool = False,
    before: bytes = b"",
    after: bytes = b"",
    idat: int = 100,
) -> bytes:
    """A PNG of samples (H, W, C).

    Args:
        before: chunks between the header and the pixels, such as a palette.
        after: chunks after the pixels.
        idat: bytes of each chunk of pixels.
    """
    height, width, channels = samples.shape
    step = max(1, channels * depth // 8)
    stream = b""
    for number, (x, y, dx, dy) in enumerate(_PASSES if interlaced else ((0, 0, 1, 1),)):
        part = samples[y::dy, x::dx]
        if part.size:
            stream += filtered(pack(part, depth), step, number)
    packed = zlib.compress(stream)
    pixels = b"".join(chunk(b"IDAT", packed[i : i + idat]) for i in range(0, len(packed), idat))
    start = SIGNATURE + header(width, height, depth, color, int(interlaced))
    return start + before + pixels + after + chunk(b"IEND", b"")


def shown(
    samples: NDArray[Any],
    depth: int,
    color: int,
    *,
    palette: NDArray[np.uint8] | None = None,
    clear: tuple[int, ...] | None = None,
    alpha: bytes = b"",
) -> NDArray[np.float64]:
    """What a viewer shows on white, in 0..255 without rounding.

    Args:
        palette: (entries, 3).
        clear: the transparent sample or color of a tRNS chunk.
        alpha: the alpha of a palette's first entries.
    """
    largest = (1 << depth) - 1
    values = samples.astype(np.float64) / largest
    opacity = np.ones(samples.shape[:2])
    if color == PALETTE:
        assert palette is not None
        index = samples[:, :, 0]
        values = palette[index] / 255
        entries = np.full(256, 255.0)
        entries[: len(alpha)] = list(alpha)
        opacity = entries[index] / 255
    elif color in (GRAY_ALPHA, RGBA):
        values, opacity = values[:, :, :-1], values[:, :, -1]
    elif clear is not None:
        opacity = 1.0 - (samples == np.array(clear)).all(axis=2)
    rgb = np.broadcast_to(values, (*values.shape[:2], 3))
    mixed: NDArray[np.float64] = rgb * opacity[:, :, None] + 1 - opacity[:, :, None]
    return mixed * 255
