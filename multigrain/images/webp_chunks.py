"""The chunks of a WebP (RFC 9649), and the headers of its pixels.

Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from multigrain.images.errors import damaged
from multigrain.images.exif import exif_orientation

LOSSY, LOSSLESS, EXTENDED, ALPHA = b"VP8 ", b"VP8L", b"VP8X", b"ALPH"
_FRAME: Final = b"ANMF"
# Each costs time; what follows so many is not looked at.
_MAX_CHUNKS: Final = 10_000
_CHUNK: Final = struct.Struct("<4sI")
_NAMES: Final = frozenset({LOSSY, LOSSLESS, EXTENDED, ALPHA, _FRAME, b"EXIF"})
_HAS_ANIMATION: Final = 0x02


@dataclass(frozen=True)
class WebPHeader:
    """What a file says of its first frame.

    Attributes:
        size: (width, height) in pixels of the canvas.
        inner: (width, height) of the frame.
        place: (left, top) of the frame on the canvas.
        orientation: of EXIF, 1..8.
        name: of the chunk with the pixels, ``LOSSY`` or ``LOSSLESS``.
        pixels: contents of that chunk.
        alpha: contents of the chunk with the alpha of lossy pixels.
    """

    size: tuple[int, int]
    inner: tuple[int, int]
    place: tuple[int, int]
    orientation: int
    name: bytes
    pixels: memoryview
    alpha: memoryview | None


def read_header(data: bytes) -> WebPHeader:
    """Reads the chunks of a file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """
    view = memoryview(data)
    canvas: tuple[int, int] | None = None
    place = 0, 0
    frame: tuple[int, int] | None = None
    alpha: memoryview | None = None
    exif: int | None = None
    pixels: tuple[bytes, memoryview] | None = None
    animated = False
    for name, body, whole in _chunks(view[12:]):
        if name == EXTENDED and len(body) >= 10:
            canvas = _u24(body, 4) + 1, _u24(body, 7) + 1
            animated = bool(body[0] & _HAS_ANIMATION)
        elif name == _FRAME and pixels is None and len(body) >= 16:
            place = 2 * _u24(body, 0), 2 * _u24(body, 3)
            frame = _u24(body, 6) + 1, _u24(body, 9) + 1
            alpha, pixels = _still(body[16:])
        elif name == ALPHA and pixels is None and whole:
            alpha = body
        elif name in (LOSSY, LOSSLESS) and pixels is None and not animated:
            if not whole:
                raise damaged("WebP", "it ends within its pixels")
            pixels = name, body
        elif name == b"EXIF" and exif is None:
            exif = exif_orientation(bytes(body).removeprefix(b"Exif\x00\x00"))
    if pixels is None:
        raise damaged("WebP", "it has no pixels")
    name, contents = pixels
    inner = _pixel_size(name, contents)
    if frame is not None and frame != inner:
        raise damaged("WebP", "the sizes of its first frame differ")
    size = canvas if animated and canvas else inner
    right, bottom = (a + b for a, b in zip(place, inner, strict=True))
    if right > size[0] or bottom > size[1]:
        raise damaged("WebP", "its first frame lies outside of its canvas")
    return WebPHeader(
        size, inner, place, exif or 1, name, contents, alpha if name == LOSSY else None
    )


def _chunks(view: memoryview) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Yields name, contents and whether they are complete, of every chunk that is looked at."""
    position, length = 0, len(view)
    for _ in range(_MAX_CHUNKS):
        if position + 8 > length:
            return
        name, size = _CHUNK.unpack_from(view, position)
        start = position + 8
        if name in _NAMES:
            yield name, view[start : start + size], start + size <= length
        position = start + size + (size & 1)


def _still(view: memoryview) -> tuple[memoryview | None, tuple[bytes, memoryview]]:
    """Returns the alpha and the pixels of a frame."""
    alpha = None
    for name, body, whole in _chunks(view):
        if name == ALPHA and whole:
            alpha = body
        elif name in (LOSSY, LOSSLESS) and whole:
            return alpha, (name, body)
    raise damaged("WebP", "its first frame is incomplete")


def _pixel_size(name: bytes, body: memoryview) -> tuple[int, int]:
    """Returns (width, height) from the header of a lossy (RFC 6386) or lossless picture."""
    if name == LOSSY:
        if bytes(body[3:6]) != b"\x9d\x01\x2a" or len(body) < 10:
            raise damaged("WebP", "its pixels have no header")
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return width, height
    if bytes(body[:1]) != b"\x2f" or len(body) < 5:
        raise damaged("WebP", "its pixels have no header")
    bits = int.from_bytes(body[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _u24(body: memoryview, at: int) -> int:
    return int.from_bytes(body[at : at + 3], "little")
