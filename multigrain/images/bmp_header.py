"""The headers of BMP: Windows and OS/2 bitmaps.

Sources: "Bitmap Storage" and the structures BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER of
the Windows documentation; the OS/2 header is in "Encyclopedia of Graphics File Formats".
Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from multigrain.images.errors import contradictory, damaged, unsupported

_FILE_HEADER: Final = 14
_CORE: Final = 12
_INFO, _WITH_MASKS, _WITH_ALPHA, _V4, _V5 = 40, 52, 56, 108, 124
_WINDOWS: Final = frozenset({_INFO, _WITH_MASKS, _WITH_ALPHA, _V4, _V5})
_RGB, RLE8, RLE4, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 1, 2, 3, 6
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


@dataclass(frozen=True)
class BmpHeader:
    """What a file says of its pixels.

    Attributes:
        size: (width, height) in pixels.
        upward: whether the first row is the lowest.
        bits: of a pixel.
        compression: ``RLE8`` and ``RLE4`` are run lengths; pixels of others have a fixed place.
        masks: bits of red, green, blue and alpha; None if pixels are bytes or indices.
        palette: place, number and bytes of the colors; None if there are none.
        pixels: where they start.
    """

    size: tuple[int, int]
    upward: bool
    bits: int
    compression: int
    masks: tuple[int, int, int, int] | None
    palette: tuple[int, int, int] | None
    pixels: int


def read_header(data: bytes) -> BmpHeader:
    """Reads the headers of a file, with or without the first one.

    Raises:
        MultigrainError: IMAGE_UNREADABLE, IMAGE_FORMAT.
    """
    start = _FILE_HEADER if data[:2] == b"BM" else 0
    header = data[start : start + _V5]
    kind = _u32(header, 0)
    if len(header) < min(kind, 16) or kind < _CORE:
        raise damaged("BMP", "its header is incomplete")
    core = kind == _CORE
    if core:
        width, height = _u16(header, 4), _u16(header, 6)
        bits, compression, used = _u16(header, 10), _RGB, 0
    else:
        width, height = _i32(header, 4), _i32(header, 8)
        bits = _u16(header, 14)
        compression = _u32(header, 16) if kind >= 20 else _RGB
        used = _u32(header, 32) if kind >= 36 else 0
    os2 = not core and kind not in _WINDOWS
    if os2 and kind > 64:
        raise unsupported(f"a BMP with a header of {kind} bytes")
    if width < 0:
        raise contradictory("BMP", f"its width is {width}")
    _check_kind(compression, bits, os2=os2)
    after = start + kind
    masks: tuple[int, int, int, int] | None = None
    if compression in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
        within = kind >= _WITH_MASKS
        count = 4 if compression == _ALPHA_BIT_FIELDS or kind >= _WITH_ALPHA else 3
        at = start + _INFO if within else after
        fields = [_u32(data, at + 4 * i) for i in range(count)]
        masks = fields[0], fields[1], fields[2], fields[3] if count == 4 else 0
        after += 0 if within else 4 * count
    elif bits in _MASKS:
        masks = (*_MASKS[bits], 0)
    if masks is not None:
        _check_masks(masks, bits)
    pixels = _u32(data, 10) if start else 0
    palette: tuple[int, int, int] | None = None
    if bits <= 8:
        entry = 3 if core else 4
        colors = min(used or 1 << bits, 256)
        if pixels > after:  # some files say that there are more than there is room for
            colors = min(colors, (pixels - after) // entry)
        palette = after, colors, entry
        after += colors * entry
        if after > len(data):
            raise damaged("BMP", "it ends within its palette")
    elif used <= 256:
        after += 4 * used  # colors that a display with a palette should use
    if pixels < start + kind:
        pixels = after
    return BmpHeader((width, abs(height)), height > 0, bits, compression, masks, palette, pixels)


def _check_kind(compression: int, bits: int, *, os2: bool) -> None:
    """Refuses what is not read, by its name."""
    named = _OS2_UNSUPPORTED if os2 else _UNSUPPORTED
    if compression in named:
        raise unsupported(named[compression])
    fits = {
        _RGB: (1, 2, 4, 8, 16, 24, 32),
        RLE8: (8,),
        RLE4: (4,),
        _BIT_FIELDS: (16, 32),
        _ALPHA_BIT_FIELDS: (16, 32),
    }.get(compression)
    if fits is None:
        raise unsupported(f"a BMP with compression {compression}")
    if bits not in fits:
        if bits == 64:
            raise unsupported("a BMP with 64 bits a pixel")
        raise contradictory("BMP", f"no BMP has compression {compression} with {bits} bits a pixel")


def _check_masks(masks: tuple[int, int, int, int], bits: int) -> None:
    seen = 0
    for mask in masks:
        ones = mask >> max((mask & -mask).bit_length() - 1, 0)
        if mask & seen or mask >> bits or ones & (ones + 1):
            raise contradictory("BMP", "the bit fields of its channels overlap or have gaps")
        seen |= mask
    if not any(masks[:3]):
        raise contradictory("BMP", "the bit fields of its channels are empty")


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _i32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little", signed=True)
