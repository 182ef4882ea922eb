"""Reading of WebP (RFC 9649): the chunks here, the pixels with libwebp.

The library gets a file of one still picture, so that metadata and later frames cannot refuse it.
"""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, WebPImagePlugin

from multigrain.images.picture import Picture, damaged, exif_orientation, on_white

_LOSSY, _LOSSLESS, _EXTENDED, _ALPHA = b"VP8 ", b"VP8L", b"VP8X", b"ALPH"
_FRAME: Final = b"ANMF"
# Each costs time; what follows so many is not looked at.
_MAX_CHUNKS: Final = 10_000
_HAS_ALPHA: Final = 0x10
_HAS_ANIMATION: Final = 0x02


class WebP(Picture):
    """A WebP, of which the first frame counts. Uncovered parts of its canvas are white.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """

    form = "WebP"

    def __init__(self, data: bytes) -> None:
        view = memoryview(data)
        canvas: tuple[int, int] | None = None
        self._place = 0, 0
        frame: tuple[int, int] | None = None
        alpha: memoryview | None = None
        exif: int | None = None
        pixels: tuple[bytes, memoryview] | None = None
        animated = False
        for name, body, whole in _chunks(view[12:]):
            if name == _EXTENDED and len(body) >= 10:
                canvas = _u24(body, 4) + 1, _u24(body, 7) + 1
                animated = bool(body[0] & _HAS_ANIMATION)
            elif name == _FRAME and pixels is None and len(body) >= 16:
                self._place = 2 * _u24(body, 0), 2 * _u24(body, 3)
                frame = _u24(body, 6) + 1, _u24(body, 9) + 1
                alpha, pixels = _still(body[16:])
            elif name == _ALPHA and pixels is None and whole:
                alpha = body
            elif name in (_LOSSY, _LOSSLESS) and pixels is None and not animated:
                if not whole:
                    raise damaged("WebP", "it ends within its pixels")
                pixels = name, body
            elif name == b"EXIF" and exif is None:
                exif = exif_orientation(bytes(body).removeprefix(b"Exif\x00\x00"))
        if pixels is None:
            raise damaged("WebP", "it has no pixels")
        self.orientation = exif or 1
        self._name, self._body = pixels
        self._alpha = alpha if self._name == _LOSSY else None
        self._inner = _pixel_size(self._name, self._body)
        if frame is not None and frame != self._inner:
            raise damaged("WebP", "the sizes of its first frame differ")
        self.size = canvas if animated and canvas else self._inner
        right, bottom = (a + b for a, b in zip(self._place, self._inner, strict=True))
        if right > self.size[0] or bottom > self.size[1]:
            raise damaged("WebP", "its first frame lies outside of its canvas")

    def load(self, factor: int = 1) -> Image.Image:
        body = _chunk(self._name, self._body)
        if self._alpha is not None:
            sides = b"".join((n - 1).to_bytes(3, "little") for n in self._inner)
            extended = _chunk(_EXTENDED, bytes((_HAS_ALPHA, 0, 0, 0)) + sides)
            body = extended + _chunk(_ALPHA, self._alpha) + body
        file = b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
        with WebPImagePlugin.WebPImageFile(io.BytesIO(file)) as image:
            image.load()
            still = on_white(image) if image.mode == "RGBA" else image.convert("RGB")
        if still.size == self.size:
            return still
        canvas = Image.new("RGB", self.size, (255, 255, 255))
        canvas.paste(still, self._place)
        return canvas


def _chunks(view: memoryview) -> list[tuple[bytes, memoryview, bool]]:
    """Returns name, contents and whether they are complete, of every chunk."""
    found: list[tuple[bytes, memoryview, bool]] = []
    position = 0
    while position + 8 <= len(view) and len(found) < _MAX_CHUNKS:
        size = int.from_bytes(view[position + 4 : position + 8], "little")
        start, end = position + 8, position + 8 + size
        found.append((bytes(view[position : position + 4]), view[start:end], end <= len(view)))
        position = end + (size & 1)
    return found


def _still(view: memoryview) -> tuple[memoryview | None, tuple[bytes, memoryview]]:
    """Returns the alpha and the pixels of a frame."""
    alpha = None
    for name, body, whole in _chunks(view):
        if name == _ALPHA and whole:
            alpha = body
        elif name in (_LOSSY, _LOSSLESS) and whole:
            return alpha, (name, body)
    raise damaged("WebP", "its first frame is incomplete")


def _pixel_size(name: bytes, body: memoryview) -> tuple[int, int]:
    """Returns (width, height) from the header of a lossy (RFC 6386) or lossless picture."""
    if name == _LOSSY:
        if bytes(body[3:6]) != b"\x9d\x01\x2a" or len(body) < 10:
            raise damaged("WebP", "its pixels have no header")
        width, height = (int.from_bytes(body[i : i + 2], "little") & 0x3FFF for i in (6, 8))
        return width, height
    if bytes(body[:1]) != b"\x2f" or len(body) < 5:
        raise damaged("WebP", "its pixels have no header")
    bits = int.from_bytes(body[1:5], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _chunk(name: bytes, body: bytes | memoryview) -> bytes:
    return name + len(body).to_bytes(4, "little") + bytes(body) + bytes(len(body) & 1)


def _u24(body: memoryview, at: int) -> int:
    return int.from_bytes(body[at : at + 3], "little")
