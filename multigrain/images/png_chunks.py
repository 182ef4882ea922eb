"""The chunks of a PNG (ISO/IEC 15948, W3C PNG third edition): those that a picture needs.

Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from multigrain.images.errors import damaged, unsupported
from multigrain.images.exif import exif_orientation

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
_SIGNATURE_BYTES: Final = 8
# A file of 32 MiB has some thousand. Each costs time, however small it is.
_MAX_CHUNKS: Final = 30_000
# What an estimate looks at: an ordinary file has a chunk in 8 KiB or more.
_SURVEYED_CHUNKS: Final = 500
_SURVEYED_CHUNK_BYTES: Final = 4096
_CHUNK: Final = struct.Struct(">I4s")
_MAX_EXIF: Final = 2**20  # bytes of a text chunk with EXIF, unpacked
_SURVEYED_EXIF: Final = 2**16  # the same for an estimate, which must be quick
_ROTATED: Final = 6
_TEXTS: Final = (b"tEXt", b"zTXt")
_OLD_EXIF: Final = b"Raw profile type exif\x00"


@dataclass
class Chunks:
    """What of a file's chunks is needed."""

    header: bytes = b""
    palette: bytes | None = None
    transparency: bytes | None = None
    pixels: list[memoryview] = field(default_factory=list)
    exif: int | None = None
    old_exif: int | None = None


@dataclass(frozen=True)
class Survey:
    """What of a file decides how long it takes.

    Attributes:
        size: (width, height) in pixels.
        depth: bits of a sample.
        color: the color type.
        interlaced: whether the pixels are stored in seven passes.
        orientation: of EXIF, 1..8.
        clear: whether there is a transparent color or a palette's alpha.
        chunks: how many there are.
    """

    size: tuple[int, int]
    depth: int
    color: int
    interlaced: bool
    orientation: int
    clear: bool
    chunks: int


def survey(data: bytes) -> Survey:
    """Counts the chunks without looking at their contents.

    Of a file with very many small chunks it looks at the first ones only, and assumes the worst of
    the others.

    Raises:
        struct.error: there is no header.
    """
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    exif = old_exif = None
    position, count, clear, most = _SIGNATURE_BYTES, 0, False, len(data) - 12
    limit = min(_MAX_CHUNKS, _SURVEYED_CHUNKS + len(data) // _SURVEYED_CHUNK_BYTES)
    while position <= most:
        if count >= limit:
            return Survey(
                (width, height), depth, color, bool(interlaced), _ROTATED, True, _MAX_CHUNKS
            )
        length, name = _CHUNK.unpack_from(data, position)
        if name == b"tRNS":
            clear = True
        elif name == b"eXIf" and exif is None:
            end = position + 8 + length
            # One with a wrong checksum has no effect.
            if zlib.crc32(data[position + 4 : end]) == int.from_bytes(data[end : end + 4], "big"):
                exif = exif_orientation(data[position + 8 : min(end, position + 8 + _MAX_EXIF)])
        elif name in _TEXTS and old_exif is None and data.startswith(_OLD_EXIF, position + 8):
            text = data[position + 8 + len(_OLD_EXIF) : position + 8 + min(length, _MAX_EXIF)]
            old_exif = _old_exif(text, name == b"zTXt", _SURVEYED_EXIF, beyond=_ROTATED)
        elif name == b"IEND":
            break
        position += 12 + length
        count += 1
    orientation = exif or old_exif or 1
    return Survey((width, height), depth, color, bool(interlaced), orientation, clear, count)


def read_chunks(data: bytes) -> Chunks:
    """Reads the chunks that the picture needs, and checks them.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT of unknown kinds of PNG.
    """
    chunks = Chunks()
    view = memoryview(data)
    position = _SIGNATURE_BYTES
    ended = False
    for _ in range(_MAX_CHUNKS):
        if ended or position + 8 > len(data):
            break
        length = int.from_bytes(view[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        start, position = position + 8, position + 12 + length
        critical = not name[0] & 0x20
        if not chunks.header and name != b"IHDR":
            if name == b"CgBI":
                raise unsupported("a PNG that Xcode changed for an iOS app", "use the original")
            raise damaged("PNG", "its header is missing")
        if position > len(data):
            # Truncated in what a picture does not need: the pixels are complete.
            if chunks.pixels and (not critical or name == b"IEND"):
                break
            raise damaged("PNG", "it ends within a chunk")
        body = view[start : start + length]
        intact = not _is_used(name) or zlib.crc32(view[start - 4 : start + length]) == (
            int.from_bytes(view[start + length : position], "big")
        )
        if not intact and critical:
            raise damaged("PNG", f"the checksum of its chunk {_shown(name)} is wrong")
        ended = name == b"IEND"
        if intact and not ended:
            _take(chunks, name, body, critical=critical)
    else:
        raise unsupported(f"a PNG with more than {_MAX_CHUNKS} chunks", "save it again")
    if not chunks.header:
        raise damaged("PNG", "its header is incomplete")
    return chunks


def _is_used(name: bytes) -> bool:
    """Whether a chunk's contents matter, and thus its checksum. The names of metadata vary.

    The end (IEND) has no contents.
    """
    return (not name[0] & 0x20 and name != b"IEND") or name in (b"tRNS", b"eXIf")


def _take(chunks: Chunks, name: bytes, body: memoryview, *, critical: bool) -> None:
    """Stores an intact chunk that is needed.

    Like libpng, and thus most viewers: a tRNS in the wrong place, repeated, or with a wrong
    checksum has no effect.
    """
    if name == b"IHDR":
        if chunks.header or len(body) != 13:
            raise damaged("PNG", "its header has a wrong length or is repeated")
        chunks.header = bytes(body)
    elif name == b"PLTE":
        if len(body) % 3 or not 3 <= len(body) <= 768:
            if chunks.header[9] == PALETTE:
                raise damaged("PNG", "its palette has a wrong length")
        elif chunks.palette is None and not chunks.pixels:
            chunks.palette = bytes(body)
    elif name == b"IDAT":
        chunks.pixels.append(body)
    elif critical:
        raise unsupported(f"a PNG with the unknown critical chunk {_shown(name)}")
    elif name == b"tRNS":
        # That of a palette must follow the palette.
        in_place = chunks.header[9] != PALETTE or chunks.palette is not None
        if in_place and chunks.transparency is None and not chunks.pixels:
            chunks.transparency = bytes(body)
    elif name == b"eXIf":
        if chunks.exif is None:  # only the first: a file could have thousands, which take time
            chunks.exif = exif_orientation(bytes(body[:_MAX_EXIF]))
    elif (
        name in _TEXTS
        and chunks.old_exif is None  # only the first: unpacking takes time
        and bytes(body[: len(_OLD_EXIF)]) == _OLD_EXIF
    ):
        chunks.old_exif = _old_exif(bytes(body[len(_OLD_EXIF) :]), name == b"zTXt")


def _old_exif(text: bytes, packed: bool, most: int = _MAX_EXIF, *, beyond: int = 0) -> int:
    """Returns the orientation of EXIF in a text chunk, as ImageMagick wrote it before eXIf.

    Args:
        text: of the chunk, after its keyword.
        packed: whether it is compressed.
        most: bytes of the text that are looked at.
        beyond: what is returned if there are more and none was found in these.
    """
    if packed:
        try:
            text = zlib.decompressobj().decompress(text[1:], most)
        except zlib.error:
            return 0
    missing = 0 if len(text) < most else beyond
    # A newline, the name, the length in bytes, then hexadecimal digits.
    lines = text[:most].split(b"\n", 3)
    # Not by a regular expression, which takes a hundred times as long for nothing but spaces.
    digits = lines[3].translate(None, b" \t\n\r\v\f") if len(lines) == 4 else b""
    try:
        exif = bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))
    except ValueError:
        return missing
    return exif_orientation(exif.removeprefix(b"Exif\x00\x00")) or missing


def _shown(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace") if name.isalpha() else repr(name)[1:]
