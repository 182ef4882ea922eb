"""Reading of WebP (RFC 9649): the chunks here, the pixels with libwebp.

The library gets a file of one still picture, so that metadata and later frames cannot refuse it.
"""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, WebPImagePlugin

from multigrain.images.picture import Picture, bands, on_white
from multigrain.images.webp_chunks import ALPHA, EXTENDED, read_header

HAS_ALPHA: Final = 0x10


class WebP(Picture):
    """A WebP, of which the first frame counts. Uncovered parts of its canvas are white.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """

    form = "WebP"

    def __init__(self, data: bytes) -> None:
        self._header = header = read_header(data)
        self.orientation = header.orientation
        self.size = header.size

    def load(self, factor: int = 1) -> Image.Image:
        body = _chunk(self._header.name, self._header.pixels)
        if self._header.alpha is not None:
            sides = b"".join((n - 1).to_bytes(3, "little") for n in self._header.inner)
            extended = _chunk(EXTENDED, bytes((HAS_ALPHA, 0, 0, 0)) + sides)
            body = extended + _chunk(ALPHA, self._header.alpha) + body
        file = b"RIFF" + (4 + len(body)).to_bytes(4, "little") + b"WEBP" + body
        del body
        with WebPImagePlugin.WebPImageFile(io.BytesIO(file)) as image:
            size, raw = image.size, image.rawmode
            # Its decoder holds the picture twice: it is freed before the pixels are converted.
            pixels = memoryview(image._get_next()[0])
            image._decoder = None
        del file
        canvas = Image.new("RGB", self.size, (255, 255, 255) if size != self.size else None)
        left, top = self._header.place
        for box in bands(size):
            stored = pixels[4 * size[0] * box[1] : 4 * size[0] * box[3]]
            mode = "RGB" if raw == "RGBX" else "RGBA"
            part = Image.frombytes(mode, (size[0], box[3] - box[1]), stored, "raw", raw)
            canvas.paste(part if mode == "RGB" else on_white(part), (left, top + box[1]))
        return canvas


def _chunk(name: bytes, body: bytes | memoryview) -> bytes:
    return name + len(body).to_bytes(4, "little") + bytes(body) + bytes(len(body) & 1)
