"""Reading of PNG by its specification (ISO/IEC 15948, W3C PNG third edition).

Only the chunks that a picture needs are looked at, so that text, profiles and other metadata of any
size or state cannot refuse it. Pillow inflates the pixels and undoes their filters; what a sample
means follows from the header.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.errors import damaged
from multigrain.images.picture import Picture, bands, on_white
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
# Larger pictures are decoded in bands of rows where a conversion would need as much memory again.
_BAND_PIXELS: Final = 2**17
# Scaling of 16 bits to 8: v * 255 / 65535, rounded.
_SCALED: Final = ((np.arange(65536, dtype=np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
_CHANNELS: Final = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}


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
        chunks, self._pixels = self._pixels, []
        simple = self._depth <= 8 and self._color not in (RGBA, GRAY_ALPHA)
        if simple and (self._color != RGB or self._clear is None):
            return self._simple(_joined(chunks))
        width, height = self.size
        rows = max(1, _BAND_PIXELS // max(1, width))
        if self._interlaced or rows >= height:
            return self._convert(_joined(chunks), self.size)[0]
        canvas = Image.new("RGB", self.size, None)
        row_bytes = width * _CHANNELS[self._color] * self._depth // 8
        stream = _Inflating(chunks)
        above = b""
        for top in range(0, height, rows):
            band = stream.read((1 + row_bytes) * min(rows, height - top))
            # The first row may be stored as differences to the one above it, which is added.
            before = b"\0" + above if top else b""
            packed = zlib.compress(before + band, 0)
            lines = min(rows, height - top) + bool(top)
            picture, above = self._convert(packed, (width, lines))
            canvas.paste(picture.crop((0, 1, width, lines)) if top else picture, (0, top))
        return canvas

    def _simple(self, stream: bytes | memoryview) -> Image.Image:
        """Decodes pixels that need no arithmetic."""
        if self._color == RGB:
            return self._unpack(stream, "RGB", "RGB")
        if self._color == GRAY and self._depth == 8 and self._clear is None:
            return self._unpack(stream, "L", "L").convert("RGB")
        # The file's samples, which a table of their colors turns into RGB.
        raw = "P" if self._depth == 8 else f"P;{self._depth}"
        image = self._unpack(stream, "P", raw)
        image.putpalette(self._colors().tobytes())
        return image.convert("RGB")

    def _convert(
        self, stream: bytes | memoryview, size: tuple[int, int]
    ) -> tuple[Image.Image, bytes]:
        """Decodes rows of pixels with alpha, a transparent color or 16 bits.

        Returns:
            The pixels on white, of mode RGB, and the bytes of the last row as stored.
        """
        if self._depth == 16:
            return self._deep(stream, size)
        mode = {RGB: "RGB", RGBA: "RGBA", GRAY_ALPHA: "LA"}[self._color]
        image = self._unpack(stream, mode, mode, size)
        last = image.crop((0, size[1] - 1, *size)).tobytes()
        return self._clear_color(image) if self._color == RGB else on_white(image), last

    def _unpack(
        self,
        stream: bytes | memoryview,
        mode: str,
        raw: str,
        size: tuple[int, int] | None = None,
    ) -> Image.Image:
        return Image.frombytes(mode, size or self.size, stream, "zip", (raw, self._interlaced))

    def _clear_color(self, image: Image.Image) -> Image.Image:
        """Makes the transparent color of an 8-bit RGB image white."""
        pixels = np.array(image)
        white = _white_where(np.moveaxis(pixels, 2, 0), self._clear or ())
        for channel in range(3):
            pixels[:, :, channel] |= white
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

    def _deep(self, stream: bytes | memoryview, size: tuple[int, int]) -> tuple[Image.Image, bytes]:
        """Reads 16-bit samples, and scales them to 8 bits: v * 255 / 65535, rounded.

        The transparent color is compared, and transparency composited, before. Pillow has modes
        for a single 16-bit channel only, but its decoder can return the first or the second byte
        of every sample.
        """
        width, height = size
        channels = _CHANNELS[self._color]
        # Of each channel, low byte and high byte of each sample.
        stored = np.empty((channels, height, width, 2), np.uint8)
        deep: NDArray[np.uint16] = stored.view("<u2")[:, :, :, 0]
        if self._color == GRAY:
            deep[0] = np.asarray(self._unpack(stream, "I;16", "I;16B", size))
        elif self._color == GRAY_ALPHA:
            # The four bytes of a pixel as channels.
            pairs = np.asarray(self._unpack(stream, "RGBA", "RGBA", size))
            for channel, place in np.ndindex(2, 2):
                stored[channel, :, :, place] = pairs[:, :, 2 * channel + 1 - place]
        else:
            mode = "RGB" if self._color == RGB else "RGBA"
            for place, part in enumerate("LB"):
                half = np.asarray(self._unpack(stream, mode, f"{mode};16{part}", size))
                for channel in range(channels):
                    stored[channel, :, :, place] = half[:, :, channel]
                del half
        last = np.moveaxis(stored[:, -1, :, ::-1], 0, 1).tobytes()
        canvas = Image.new("RGB", size, None)
        for box in bands(size):
            band = deep[:, box[1] : box[3]]
            canvas.paste(Image.fromarray(self._scaled(band)), box)
        return canvas, last

    def _scaled(self, deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Composites 16-bit samples (C, H, W) on white and scales them to 8 bits: (H, W, 3)."""
        colors = deep
        if self._color in (GRAY_ALPHA, RGBA):
            colors, alpha = deep[:-1], deep[-1]
            if alpha.min() < 65535:
                # At most 65535 * 65535 + 32767, which 32 bits hold.
                clear = (65535 - alpha).astype(np.uint32) * 65535 + 32767
                mixed = ((color.astype(np.uint32) * alpha + clear) // 65535 for color in colors)
                colors = np.array([color.astype(np.uint16) for color in mixed])
        scaled = np.empty((*deep.shape[1:], 3), np.uint8)
        for channel in range(3):
            scaled[:, :, channel] = _SCALED[colors[min(channel, len(colors) - 1)]]
        if self._clear is not None:
            white = _white_where(deep, self._clear)
            for channel in range(3):
                scaled[:, :, channel] |= white
        return scaled


def _white_where(
    channels: NDArray[np.unsignedinteger], color: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Returns 255 for pixels (C, H, W) of a color, and 0 for others."""
    same = channels[0] == color[0]
    for channel, value in zip(channels[1:], color[1:], strict=True):
        same &= channel == value
    return same.view(np.uint8) * np.uint8(255)


class _Inflating:
    """Inflates a stream that is divided into chunks.

    Args:
        chunks: of the stream.
    """

    def __init__(self, chunks: list[memoryview]) -> None:
        self._chunks = iter(chunks)
        self._inflate = zlib.decompressobj()
        self._packed: bytes | memoryview = b""

    def read(self, size: int) -> bytes:
        """Returns the next ``size`` bytes.

        Raises:
            MultigrainError: IMAGE_UNREADABLE.
        """
        parts = []
        while size:
            # Some of the output may be left although all of the input was taken.
            part = self._inflate.decompress(self._packed, size)
            self._packed = self._inflate.unconsumed_tail
            if not part and not self._packed:
                chunk = next(self._chunks, None)
                if chunk is None or self._inflate.eof:
                    raise damaged("PNG", "it ends before its last pixel")
                self._packed = chunk
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _joined(chunks: list[memoryview]) -> bytes | memoryview:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
