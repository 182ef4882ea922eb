"""Reading of PNG by its specification (ISO/IEC 15948, W3C PNG third edition).

Only the chunks that a picture needs are looked at, so that text, profiles and other metadata of any
size or state cannot refuse it. Pillow inflates the pixels and undoes their filters; what a sample
means follows from the header.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.errors import damaged
from multigrain.images.picture import Picture, on_white
from multigrain.images.png_chunks import (
    GRAY,
    GRAY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    Chunks,
    read_chunks,
)

# Color type -> bit depths that exist (table 11.1 of the specification).
_DEPTHS: Final = {
    GRAY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GRAY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
_BAND_PIXELS: Final = 2**20  # 16-bit samples are scaled in bands of rows, to save memory


class Png(Picture):
    """A PNG; of an animated one, the default image, which every viewer shows first.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE (truncated or damaged), IMAGE_FORMAT (a chunk without
            which the picture cannot be shown, and which is not known).
    """

    form = "PNG"

    def __init__(self, data: bytes) -> None:
        chunks = read_chunks(data)
        header = chunks.header
        self.size = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
        self._depth, self._color, compression, filtering, interlaced = header[8:13]
        self.orientation = chunks.exif or chunks.old_exif or 1
        if self._depth not in _DEPTHS.get(self._color, ()):
            raise damaged("PNG", f"no PNG has color type {self._color} with {self._depth} bits")
        if compression or filtering or interlaced > 1:
            raise damaged("PNG", "its header names an unknown compression, filter or interlacing")
        if self._color == PALETTE and chunks.palette is None:
            raise damaged("PNG", "its palette is missing")
        self._interlaced = interlaced
        self._palette = chunks.palette or b""
        self._clear, self._alpha = _transparency(chunks, self._color, self._depth)
        self._pixels = chunks.pixels

    def load(self, factor: int = 1) -> Image.Image:
        if not self._pixels:
            raise damaged("PNG", "it has no pixels")
        stream = self._pixels[0] if len(self._pixels) == 1 else b"".join(self._pixels)
        self._pixels = []
        if self._depth == 16:
            return self._deep(stream)
        if self._color == RGBA:
            return on_white(self._unpack(stream, "RGBA", "RGBA"))
        if self._color == GRAY_ALPHA:
            return on_white(self._unpack(stream, "LA", "LA"))
        if self._color == RGB:
            image = self._unpack(stream, "RGB", "RGB")
            return image if self._clear is None else self._clear_color(image)
        if self._color == GRAY and self._depth == 8 and self._clear is None:
            return self._unpack(stream, "L", "L").convert("RGB")
        # The file's samples, which a table of their colors turns into RGB.
        raw = "P" if self._depth == 8 else f"P;{self._depth}"
        image = self._unpack(stream, "P", raw)
        image.putpalette(self._colors().tobytes())
        return image.convert("RGB")

    def _unpack(self, stream: bytes | memoryview, mode: str, raw: str) -> Image.Image:
        return Image.frombytes(mode, self.size, stream, "zip", (raw, self._interlaced))

    def _clear_color(self, image: Image.Image) -> Image.Image:
        """Makes the transparent color of an 8-bit RGB image white."""
        pixels = np.array(image)
        pixels[(pixels == np.array(self._clear, np.uint8)).all(axis=2)] = 255
        return Image.fromarray(pixels)

    def _colors(self) -> NDArray[np.uint8]:
        """Returns the color of every sample of up to 8 bits: uint8 (256, 3)."""
        colors = np.zeros((256, 3), np.uint8)
        if self._color == GRAY:
            largest = (1 << self._depth) - 1
            colors[: largest + 1] = (np.arange(largest + 1) * 255 // largest)[:, None]
            if self._clear is not None:
                colors[self._clear[0]] = 255
            return colors
        entries = np.frombuffer(self._palette, np.uint8).reshape(-1, 3)[:256]
        colors[: len(entries)] = entries
        if self._alpha is not None:
            alpha = np.full(256, 255, np.uint8)
            alpha[: len(self._alpha)] = np.frombuffer(self._alpha, np.uint8)
            rgba = np.concatenate([colors, alpha[:, None]], axis=1)[None]
            colors = np.asarray(on_white(Image.fromarray(np.ascontiguousarray(rgba))))[0]
        return colors

    def _deep(self, stream: bytes | memoryview) -> Image.Image:
        """Reads 16-bit samples, and scales them to 8 bits: v * 255 / 65535, rounded.

        The transparent color is compared, and transparency composited, before. Pillow has modes
        for a single 16-bit channel only, but its decoder can return the first or the second byte
        of every sample.
        """
        if self._color == GRAY:
            deep = np.asarray(self._unpack(stream, "I;16", "I;16B"))[:, :, None]
            high, low = (deep >> 8).astype(np.uint8), deep.astype(np.uint8)
        elif self._color == GRAY_ALPHA:
            # The four bytes of a pixel as channels.
            pairs = np.asarray(self._unpack(stream, "RGBA", "RGBA"))
            high, low = pairs[:, :, 0::2], pairs[:, :, 1::2]
        else:
            mode = "RGB" if self._color == RGB else "RGBA"
            high = np.asarray(self._unpack(stream, mode, f"{mode};16B"))
            low = np.asarray(self._unpack(stream, mode, f"{mode};16L"))
        out = np.empty((*high.shape[:2], 3), np.uint8)
        rows = max(1, _BAND_PIXELS // high.shape[1])
        for start in range(0, high.shape[0], rows):
            band = slice(start, start + rows)
            samples: NDArray[np.uint32] = high[band].astype(np.uint32) * 256 + low[band]
            out[band] = self._scaled(samples)
        return Image.fromarray(out)

    def _scaled(self, deep: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Composites 16-bit samples on white and scales them to 8 bits: (H, W, 1 or 3)."""
        color = deep
        if self._color in (GRAY_ALPHA, RGBA):
            alpha = deep[:, :, -1:].astype(np.uint64)
            mixed = deep[:, :, :-1] * alpha + 65535 * (65535 - alpha)
            color = ((mixed + 32767) // 65535).astype(np.uint32)
        scaled = ((color * 255 + 32767) // 65535).astype(np.uint8)
        if self._clear is not None:
            scaled[(deep == np.array(self._clear, np.uint32)).all(axis=2)] = 255
        return scaled


def _transparency(
    chunks: Chunks, color: int, depth: int
) -> tuple[tuple[int, ...] | None, bytes | None]:
    """Returns (the transparent gray or color, the alpha of a palette's entries), or None.

    One of a wrong length has no effect, and of a sample only the lowest ``depth`` bits count.
    """
    body = chunks.transparency or b""
    if color == PALETTE:
        return None, body if 0 < len(body) <= len(chunks.palette or b"") // 3 else None
    if len(body) != {GRAY: 2, RGB: 6}.get(color):
        return None, None
    mask = (1 << depth) - 1
    return tuple(
        int.from_bytes(body[i : i + 2], "big") & mask for i in range(0, len(body), 2)
    ), None
