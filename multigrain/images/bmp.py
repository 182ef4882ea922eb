"""Reading of BMP: Windows and OS/2 bitmaps of every header.

Sources: "Bitmap Storage" and the structures BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER of
the Windows documentation; the OS/2 header is in "Encyclopedia of Graphics File Formats".
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.images.picture import Picture, contradictory, damaged, on_white, unsupported

_FILE_HEADER: Final = 14
_CORE: Final = 12
_INFO, _WITH_MASKS, _WITH_ALPHA, _V4, _V5 = 40, 52, 56, 108, 124
_WINDOWS: Final = frozenset({_INFO, _WITH_MASKS, _WITH_ALPHA, _V4, _V5})
_RGB, _RLE8, _RLE4, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 1, 2, 3, 6
_UNSUPPORTED: Final = {
    4: "a BMP that holds a JPEG",
    5: "a BMP that holds a PNG",
    11: "a BMP with CMYK colors",
    12: "a BMP with CMYK colors",
    13: "a BMP with CMYK colors",
}
_OS2_UNSUPPORTED: Final = {
    3: "an OS/2 bitmap with fax compression",
    4: "an OS/2 bitmap with run-length compression of 24 bits",
}
# Bits of a pixel -> red, green and blue, if the file does not say.
_MASKS: Final = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0x00FF00, 0x0000FF)}
_MAX_IDLE: Final = 100_000  # codes that add no pixel
_BAND_PIXELS: Final = 2**20  # bit fields are converted in bands of rows, to save memory


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
        start = _FILE_HEADER if data[:2] == b"BM" else 0
        header = data[start : start + _V5]
        kind = _u32(header, 0)
        if len(header) < min(kind, 16) or kind < _CORE:
            raise damaged("BMP", "its header is incomplete")
        core = kind == _CORE
        if core:
            width, height = _u16(header, 4), _u16(header, 6)
            self._bits, compression, used = _u16(header, 10), _RGB, 0
        else:
            width, height = _i32(header, 4), _i32(header, 8)
            self._bits = _u16(header, 14)
            compression = _u32(header, 16) if kind >= 20 else _RGB
            used = _u32(header, 32) if kind >= 36 else 0
        os2 = not core and kind not in _WINDOWS
        if os2 and kind > 64:
            raise unsupported(f"a BMP with a header of {kind} bytes")
        self._upward = height > 0
        self.size = width, abs(height)
        if width < 0:
            raise contradictory("BMP", f"its width is {width}")
        self._compression = compression
        self._check(os2)
        after = start + kind
        self._masks: tuple[int, int, int, int] | None = None
        if compression in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
            within = kind >= _WITH_MASKS
            count = 4 if compression == _ALPHA_BIT_FIELDS or kind >= _WITH_ALPHA else 3
            at = start + _INFO if within else after
            fields = [_u32(data, at + 4 * i) for i in range(count)]
            self._masks = fields[0], fields[1], fields[2], fields[3] if count == 4 else 0
            after += 0 if within else 4 * count
        elif self._bits in _MASKS:
            self._masks = (*_MASKS[self._bits], 0)
        if self._masks is not None:
            _check_masks(self._masks, self._bits)
        self._pixels = _u32(data, 10) if start else 0
        self._palette: NDArray[np.uint8] = np.zeros((256, 3), np.uint8)
        if self._bits <= 8:
            after = self._read_palette(after, 3 if core else 4, used)
        elif used <= 256:
            after += 4 * used  # colors that a display with a palette should use
        if self._pixels < start + kind:
            self._pixels = after

    def load(self, factor: int = 1) -> Image.Image:
        width, height = self.size
        if self._compression in (_RLE8, _RLE4):
            indices = _unpack_runs(
                self._data, self._pixels, self.size, half=self._compression == _RLE4
            )
            rows = indices[::-1] if self._upward else indices
            return Image.fromarray(self._palette[rows])
        stride = (width * self._bits + 31) // 32 * 4
        needed = stride * (height - 1) + (width * self._bits + 7) // 8
        stored = memoryview(self._data)[self._pixels : self._pixels + stride * height]
        if len(stored) < needed:
            raise damaged("BMP", "it ends before its last pixel")
        if len(stored) < stride * height:  # without the padding of the last row
            stored = memoryview(bytes(stored) + bytes(stride * height - len(stored)))
        if self._masks is not None:
            return self._fields(stored, stride)
        mode, raw = ("RGB", "BGR") if self._bits == 24 else ("P", f"P;{self._bits}")
        raw = "P" if raw == "P;8" else raw
        step = -1 if self._upward else 1
        image = Image.frombytes(mode, self.size, stored, "raw", (raw, stride, step))
        if mode == "RGB":
            return image
        image.putpalette(self._palette.tobytes())
        return image.convert("RGB")

    def _check(self, os2: bool) -> None:
        """Refuses what is not read, by its name."""
        compression, bits = self._compression, self._bits
        named = _OS2_UNSUPPORTED if os2 else _UNSUPPORTED
        if compression in named:
            raise unsupported(named[compression])
        fits = {
            _RGB: (1, 2, 4, 8, 16, 24, 32),
            _RLE8: (8,),
            _RLE4: (4,),
            _BIT_FIELDS: (16, 32),
            _ALPHA_BIT_FIELDS: (16, 32),
        }.get(compression)
        if fits is None:
            raise unsupported(f"a BMP with compression {compression}")
        if bits not in fits:
            if bits == 64:
                raise unsupported("a BMP with 64 bits a pixel")
            raise contradictory(
                "BMP", f"no BMP has compression {compression} with {bits} bits a pixel"
            )

    def _read_palette(self, position: int, width: int, used: int) -> int:
        """Reads the colors, and returns where they end."""
        count = min(used or 1 << self._bits, 256)
        if self._pixels > position:  # some files say that there are more than there is room for
            count = min(count, (self._pixels - position) // width)
        stored = self._data[position : position + count * width]
        if len(stored) < count * width:
            raise damaged("BMP", "it ends within its palette")
        self._palette[:count] = np.frombuffer(stored, np.uint8).reshape(-1, width)[:, 2::-1]
        return position + len(stored)

    def _fields(self, stored: memoryview, stride: int) -> Image.Image:
        """Reads pixels of 16 or 32 bits by the masks of their channels."""
        width, height = self.size
        assert self._masks is not None
        unit = self._bits // 8
        pixels = np.frombuffer(stored, f"<u{unit}").reshape(height, stride // unit)[:, :width]
        if self._upward:
            pixels = pixels[::-1]
        alpha = self._masks[3]
        with_alpha = alpha != 0 and bool((pixels & alpha).any())
        masks = self._masks if with_alpha else self._masks[:3]
        out = np.empty((height, width, len(masks)), np.uint8)
        rows = max(1, _BAND_PIXELS // width)
        for start in range(0, height, rows):
            band = slice(start, start + rows)
            for channel, mask in enumerate(masks):
                out[band, :, channel] = _scaled(pixels[band], mask)
        image = Image.fromarray(out)
        return on_white(image) if with_alpha else image


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


def _check_masks(masks: tuple[int, int, int, int], bits: int) -> None:
    seen = 0
    for mask in masks:
        ones = mask >> max((mask & -mask).bit_length() - 1, 0)
        if mask & seen or mask >> bits or ones & (ones + 1):
            raise contradictory("BMP", "the bit fields of its channels overlap or have gaps")
        seen |= mask
    if not any(masks[:3]):
        raise contradictory("BMP", "the bit fields of its channels are empty")


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


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)
