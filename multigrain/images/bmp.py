"""Reading of BMP: Windows and OS/2 bitmaps of every header."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.bmp_header import RLE4, RLE8, read_header
from multigrain.images.errors import damaged
from multigrain.images.picture import Picture, bands, from_rows, on_white

_MAX_IDLE: Final = 100_000  # codes that add no pixel


class Bmp(Picture):
    """A BMP, or the same without its file header (DIB).

    Alpha counts if the file has bit fields with one for it, and if not all of it is 0: many
    programs write such a bit field and leave it empty. The fourth byte of a pixel without bit
    fields has no meaning.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE, IMAGE_FORMAT.
    """

    form = "BMP"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._header = read_header(data)
        self.size = self._header.size

    def load(self, factor: int = 1) -> Image.Image:
        header = self._header
        palette = self._colors()
        width, height = self.size
        if header.compression in (RLE8, RLE4):
            indices = _unpack_runs(
                self._data, header.pixels, self.size, half=header.compression == RLE4
            )
            indices = indices[::-1] if header.upward else indices
            canvas = Image.new("RGB", self.size, None)
            for box in bands(self.size):
                part = Image.fromarray(np.ascontiguousarray(indices[box[1] : box[3]]))
                part.putpalette(palette.tobytes())
                canvas.paste(part.convert("RGB"), box)
            return canvas
        stride = (width * header.bits + 31) // 32 * 4
        needed = stride * (height - 1) + (width * header.bits + 7) // 8
        stored = memoryview(self._data)[header.pixels : header.pixels + stride * height]
        if len(stored) < needed:
            raise damaged("BMP", "it ends before its last pixel")
        if len(stored) < stride * height:  # without the padding of the last row
            stored = memoryview(bytes(stored) + bytes(stride * height - len(stored)))
        if header.masks is not None:
            return self._fields(stored, stride)
        mode, raw = ("RGB", "BGR") if header.bits == 24 else ("P", f"P;{header.bits}")
        raw = "P" if raw == "P;8" else raw
        step = -1 if header.upward else 1
        image = Image.frombytes(mode, self.size, stored, "raw", (raw, stride, step))
        if mode == "RGB":
            return image
        image.putpalette(palette.tobytes())
        return image.convert("RGB")

    def _colors(self) -> NDArray[np.uint8]:
        """Returns the colors of a palette: uint8 (256, 3)."""
        colors = np.zeros((256, 3), np.uint8)
        if self._header.palette is not None:
            start, count, entry = self._header.palette
            stored = np.frombuffer(self._data, np.uint8, count * entry, start)
            colors[:count] = stored.reshape(-1, entry)[:, 2::-1]
        return colors

    def _fields(self, stored: memoryview, stride: int) -> Image.Image:
        """Reads pixels of 16 or 32 bits by the masks of their channels."""
        header = self._header
        width, height = self.size
        assert header.masks is not None
        unit = header.bits // 8
        pixels = np.frombuffer(stored, f"<u{unit}").reshape(height, stride // unit)[:, :width]
        if header.upward:
            pixels = pixels[::-1]
        alpha = header.masks[3]
        with_alpha = alpha != 0 and any(
            (pixels[a:b] & alpha).any() for _, a, _, b in bands(self.size)
        )
        masks = header.masks if with_alpha else header.masks[:3]

        def channels(top: int, bottom: int) -> NDArray[np.uint8]:
            return np.stack([_scaled(pixels[top:bottom], mask) for mask in masks], axis=2)

        if not with_alpha:
            return from_rows(self.size, channels)
        canvas = Image.new("RGB", self.size)
        for box in bands(self.size):
            canvas.paste(on_white(Image.fromarray(channels(box[1], box[3]))), box)
        return canvas


def _scaled(pixels: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """Returns one channel, scaled from 0..largest to 0..255 with rounding."""
    if not mask:
        return np.zeros(pixels.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    largest = mask >> shift
    values = (pixels & mask) >> shift
    if largest == 255:
        return values.astype(np.uint8)
    return ((values.astype(np.uint64) * 255 + largest // 2) // largest).astype(np.uint8)


def _unpack_runs(
    data: bytes, position: int, size: tuple[int, int], *, half: bool
) -> NDArray[np.uint8]:
    """Undoes run-length encoding: indices (H, W), in the order of the file.

    Pixels that the file skips have index 0.

    Args:
        half: a byte holds two pixels of 4 bits (RLE4), instead of one (RLE8).
    """
    width, height = size
    out = bytearray(width * height)
    x = y = 0
    idle = 0
    while y < height:
        if idle > _MAX_IDLE:
            raise damaged("BMP", "its rows are longer than its width")
        if position + 2 > len(data):
            # A missing end mark does no harm.
            if y == height - 1 and x >= width:
                break
            raise damaged("BMP", "it ends before its last pixel")
        count, value = data[position], data[position + 1]
        position += 2
        if count:
            run = bytes((value >> 4, value & 15)) * (count + 1 >> 1) if half else bytes((value,))
            run = run[:count] if half else run * count
        elif value == 0:  # end of a row
            x, y = 0, y + 1
            continue
        elif value == 1:  # end of the picture
            break
        elif value == 2:  # a jump
            if position + 2 > len(data):
                raise damaged("BMP", "it ends before its last pixel")
            idle += not (data[position] or data[position + 1])
            x, y = x + data[position], y + data[position + 1]
            position += 2
            continue
        else:  # pixels one by one, padded to 16 bits
            length = value + 1 >> 1 if half else value
            run = data[position : position + length]
            if len(run) < length:
                raise damaged("BMP", "it ends before its last pixel")
            if half:
                run = bytes(n for byte in run for n in (byte >> 4, byte & 15))[:value]
            position += length + (length & 1)
        if x >= width:
            idle += 1
        run = run[: max(0, width - x)]
        at = y * width + x
        out[at : at + len(run)] = run
        x += len(run)
    return np.frombuffer(out, np.uint8).reshape(height, width)
