"""Small files that ask for much: pictures as a hostile caller would send them.

Each function returns one file. The defaults are near the limit of 50 million pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Final

from PIL import Image

SIDE: Final = 7064
_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS: Final = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGBA: 4}


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def small_jpeg() -> bytes:
    """An ordinary picture of 64 x 64 pixels."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).save(file, "JPEG")
    return file.getvalue()


def jpeg_of_scans(scans: int, side: int = SIDE, *, refine: bool = True) -> bytes:
    """A gray progressive JPEG in which each scan is some bytes, and visits every block.

    Args:
        scans: how many there are.
        side: width and height in pixels, a multiple of 8.
        refine: whether scans refine what there is, which looks at each coefficient.
    """
    blocks = (side // 8) ** 2
    # Codes of one bit: a DC difference of 0, and the end of 2^14 to 2^15 - 1 blocks.
    frame = struct.pack(">BHHB", 8, side, side, 1) + bytes((1, 0x11, 0))
    head = b"\xff\xd8" + _segment(0xDB, bytes(1) + bytes([1]) * 64) + _segment(0xC2, frame)
    head += _segment(0xC4, bytes((0x00, 1)) + bytes(15) + b"\x00")
    head += _segment(0xC4, bytes((0x10, 1)) + bytes(15) + b"\xe0")
    first = _segment(0xDA, bytes((1, 1, 0, 0, 0, 0))) + bytes(-(-blocks // 8))
    bits, left = "", blocks
    while left > 0:
        run = max(1 << 14, min(left, (1 << 15) - 1))
        bits += f"0{run - (1 << 14):014b}"
        left -= run
    bits += "1" * (-len(bits) % 8)
    ends = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")
    later = _segment(0xDA, bytes((1, 1, 0, 1, 63, 0x10 if refine else 0))) + ends
    return head + first + later * (scans - 1) + b"\xff\xd9"


def jpeg_of_segments(marker: int, body: bytes, size: int) -> bytes:
    """A small JPEG with equal segments before its picture, some bytes in all."""
    data, segment = small_jpeg(), _segment(marker, body)
    return data[:2] + segment * (size // len(segment)) + data[2:]


def jpeg_of_fill(size: int) -> bytes:
    """A small JPEG with fill bytes before its first marker."""
    data = small_jpeg()
    return data[:2] + b"\xff" * size + data[2:]


def png(
    depth: int,
    color: int,
    side: int = SIDE,
    *,
    height: int = 0,
    before: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """A PNG of zeros.

    Args:
        depth: bits of a sample.
        color: color type.
        side: width and height in pixels.
        height: 0 = the same as the width.
        before: chunks between the header and the pixels.
        interlaced: whether the pixels are stored in seven passes.
    """
    height = height or side
    passes = [(side, height)]
    if interlaced:
        steps = (
            *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)),
            *((1, 0, 2, 2), (0, 1, 1, 2)),
        )
        passes = [(-(-(side - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in steps]
    packer = zlib.compressobj(9)
    parts = []
    for width, rows in passes:
        row = bytes(1 + -(-width * _CHANNELS[color] * depth // 8))
        at_once = max(1, 2**20 // len(row))
        parts += [
            packer.compress(row * min(at_once, rows - first)) for first in range(0, rows, at_once)
        ]
    body = b"".join([*parts, packer.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, height, depth, color, 0, 0, interlaced))
    if color == _PALETTE:
        before = chunk(b"PLTE", bytes(768)) + before
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def webp(side: int = SIDE) -> bytes:
    """A lossless WebP of one color: 28 bytes."""
    # Width, height, no alpha, version 0; no transform, no cache, one code; five codes of a symbol.
    bits = (side - 1) | (side - 1) << 14
    for code in range(5):
        bits |= 1 << 35 + 4 * code
    body = b"\x2f" + bits.to_bytes(7, "little")
    chunks = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def gif(side: int = SIDE) -> bytes:
    """A GIF of one color."""
    file = io.BytesIO()
    Image.new("P", (side, side)).save(file, "GIF")
    return file.getvalue()


def gif_of_extensions(count: int) -> bytes:
    """A GIF with empty extensions before its frame."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    data = file.getvalue()
    frame = data.index(b",")
    return data[:frame] + b"!\xfe\x00" * count + data[frame:]


def bmp_of_runs(runs: int, side: int = 4000) -> bytes:
    """A BMP whose rows are runs of two pixels, so many in all."""
    rows = -(-runs // (side // 2))
    body = (b"\x02\x05" * (side // 2) + b"\x00\x00") * rows + b"\x00\x01"
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset)
    return head + info + bytes(1024) + body


def tiff(side: int = SIDE, compression: str = "tiff_adobe_deflate") -> bytes:
    """A TIFF with alpha."""
    file = io.BytesIO()
    Image.new("RGBA", (side, side)).save(file, "TIFF", compression=compression)
    return file.getvalue()


def avif(side: int = SIDE) -> bytes:
    """An AVIF of one color."""
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "AVIF", speed=10)
    return file.getvalue()


# Name -> (a file, how many of it a call has).
KINDS: Final[dict[str, tuple[Callable[[], bytes], int]]] = {
    # Nothing is wrong with these: what any caller with many images costs the others.
    "none: small JPEGs": (small_jpeg, 32),
    "JPEG, 9,000 scans": (lambda: jpeg_of_scans(9000), 1),
    "JPEG, 200 scans": (lambda: jpeg_of_scans(200), 4),
    "JPEG, 15 scans": (lambda: jpeg_of_scans(15), 8),
    "JPEG, EXIF segments": (
        lambda: jpeg_of_segments(0xE1, b"Exif\x00\x00MM\x00*" + bytes(30), 3_000_000),
        8,
    ),
    "JPEG, comments": (lambda: jpeg_of_segments(0xFE, b"", 1_000_000), 8),
    "JPEG, fill bytes": (lambda: jpeg_of_fill(20_000_000), 2),
    "WebP, 28 bytes": (webp, 32),
    "WebP, 16 megapixels": (lambda: webp(4000), 32),
    "PNG, 1 bit": (lambda: png(1, _GRAY), 32),
    "PNG, one pixel wide": (lambda: png(1, _GRAY, 1, height=8_000_000), 32),
    "PNG, palette with alpha": (
        lambda: png(8, _PALETTE, before=chunk(b"tRNS", bytes(256))),
        32,
    ),
    "PNG, gray with alpha": (lambda: png(8, _GRAY_ALPHA), 32),
    "PNG, transparent color": (lambda: png(8, _RGB, before=chunk(b"tRNS", bytes(6))), 32),
    "PNG, 16-bit gray": (lambda: png(16, _GRAY), 32),
    "PNG, 16-bit RGBA": (lambda: png(16, _RGBA), 32),
    "PNG, 16-bit RGBA, 24 megapixels": (lambda: png(16, _RGBA, 4900), 32),
    "PNG, interlaced RGBA": (lambda: png(8, _RGBA, 4900, interlaced=True), 32),
    "PNG, chunks": (lambda: png(8, _GRAY, 8, before=chunk(b"tEXt", b"") * 29_000), 32),
    "GIF": (gif, 32),
    "GIF, extensions": (lambda: gif_of_extensions(90), 32),
    "BMP, runs": (lambda: bmp_of_runs(1_500_000), 16),
    "TIFF, RGBA": (tiff, 16),
    "TIFF, LZMA": (lambda: tiff(compression="lzma"), 16),
    "AVIF": (lambda: avif(4900), 16),
}
