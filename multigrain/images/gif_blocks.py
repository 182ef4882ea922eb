"""The blocks of a GIF (GIF89a specification) up to the pixels of its first frame.

Imported by the daemon: neither NumPy nor Pillow here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from multigrain.images.errors import damaged, unsupported

# What starts an extension or a frame, or ends the file.
_BLOCK: Final = re.compile(rb"[!,;]")
# Before the first frame. Of comments and the like, 255 bytes are a block.
_MAX_BLOCKS: Final = 20_000
_MAX_EXTENSIONS: Final = 100  # before the first frame
_MAX_OTHER: Final = 65_536  # bytes before the first frame that belong to no block
# Label and length of the extension with the transparent color.
_GRAPHIC_CONTROL: Final = b"\xf9\x04"


@dataclass(frozen=True)
class GifHeader:
    """What a file says of its first frame.

    Attributes:
        size: (width, height) in pixels of the canvas.
        frame: left, top, width and height of the frame.
        table: its colors, three bytes each; empty if it has none.
        clear: index of the transparent color.
        interlaced: 1, or 0.
        pixels: where they start.
    """

    size: tuple[int, int]
    frame: tuple[int, int, int, int]
    table: bytes
    clear: int | None
    interlaced: int
    pixels: int


def read_header(data: bytes) -> GifHeader:
    """Reads the blocks up to the first frame.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT of a file of too many blocks or no frame.
    """
    if len(data) < 13:
        raise damaged("GIF", "its header is incomplete")
    canvas = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    flags = data[10]
    table, position = _color_table(data, 13, flags)
    clear: int | None = None
    blocks = _MAX_BLOCKS
    other = _MAX_OTHER
    for _ in range(_MAX_EXTENSIONS):
        # Like other readers: bytes between blocks are skipped.
        found = _BLOCK.search(data, position, position + other + 1)
        if found is None:
            if position + other + 1 < len(data):
                raise damaged("GIF", f"more than {_MAX_OTHER} bytes before its first frame")
            raise damaged("GIF", "it ends before its first frame")
        other -= found.start() - position
        position = found.end()
        if found[0] == b",":
            break
        if found[0] == b";":
            if position < len(data):
                raise damaged("GIF", "it ends before its first frame")
            raise unsupported("a GIF without a frame", "send a picture")
        if data[position : position + 2] == _GRAPHIC_CONTROL:
            shown, index = data[position + 2 : position + 3], data[position + 5 : position + 6]
            clear = index[0] if index and shown[0] & 1 else None
        position, blocks = _skip_extension(data, position, blocks)
    else:
        raise unsupported(f"a GIF with more than {_MAX_EXTENSIONS} extensions", "save it again")
    if position + 10 > len(data):
        raise damaged("GIF", "it ends before its first frame")
    left, top, width, height = (
        int.from_bytes(data[position + i : position + i + 2], "little") for i in (0, 2, 4, 6)
    )
    flags = data[position + 8]
    local, position = _color_table(data, position + 9, flags)
    table = local or table
    # Viewers enlarge a canvas that is too small for its first frame; some files have none.
    return GifHeader(
        size=(max(canvas[0], left + width), max(canvas[1], top + height)),
        frame=(left, top, width, height),
        table=table,
        clear=clear,
        interlaced=flags >> 6 & 1,
        pixels=position,
    )


def _skip_extension(data: bytes, position: int, most: int) -> tuple[int, int]:
    """Skips the blocks of an extension from its label on.

    Args:
        most: number of blocks that it may have.

    Returns:
        Where it ends, and how many blocks are left.
    """
    position += 1
    length = len(data)
    for left in range(most, 0, -1):
        if position >= length or not data[position]:
            return position + 1, left
        position += 1 + data[position]
    raise unsupported(f"a GIF with more than {_MAX_BLOCKS} blocks", "save it again")


def _color_table(data: bytes, position: int, flags: int) -> tuple[bytes, int]:
    """Returns a color table, empty if there is none, and where it ends."""
    if not flags & 0x80:
        return b"", position
    end = position + 3 * (2 << (flags & 7))
    if end > len(data):
        raise damaged("GIF", "it ends within its color table")
    return data[position:end], end
