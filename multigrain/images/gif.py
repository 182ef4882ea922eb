"""Reading of the first frame of a GIF (GIF89a specification).

The blocks before the first frame are read here; comments and extensions of programs are skipped,
and what follows the frame is not looked at.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from PIL import Image

from multigrain.images.picture import Picture, damaged, unsupported

# What starts an extension or a frame, or ends the file.
_BLOCK: Final = re.compile(rb"[!,;]")
# Before the first frame. Of comments and the like, 255 bytes are a block.
_MAX_BLOCKS: Final = 200_000
_GRAPHIC_CONTROL: Final = 0xF9
_MAX_CODE: Final = 11  # bits of the smallest LZW code; 12 is the largest of any code


class Gif(Picture):
    """A GIF, of which the first frame counts.

    A frame that is smaller than the canvas lies on white, because uncovered parts of the canvas are
    transparent in every viewer.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE.
    """

    form = "GIF"

    def __init__(self, data: bytes) -> None:
        if len(data) < 13:
            raise damaged("GIF", "its header is incomplete")
        self._data = data
        canvas = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        flags = data[10]
        self._table, position = _color_table(data, 13, flags)
        self._clear: int | None = None
        self._blocks = 0
        while self._blocks < _MAX_BLOCKS:
            # Like other readers: bytes between blocks are skipped.
            found = _BLOCK.search(data, position)
            if found is None:
                raise damaged("GIF", "it ends before its first frame")
            position = found.end()
            if found[0] == b",":
                break
            if found[0] == b";":
                if position < len(data):
                    raise damaged("GIF", "it ends before its first frame")
                raise unsupported("a GIF without a frame", "send a picture")
            position = self._extension(position)
        else:
            raise unsupported(f"a GIF with more than {_MAX_BLOCKS} blocks", "save it again")
        if position + 10 > len(data):
            raise damaged("GIF", "it ends before its first frame")
        left, top, width, height = (
            int.from_bytes(data[position + i : position + i + 2], "little") for i in (0, 2, 4, 6)
        )
        flags = data[position + 8]
        local, position = _color_table(data, position + 9, flags)
        self._table = local or self._table
        self._interlaced = flags >> 6 & 1
        self._frame = left, top, width, height
        self._pixels = position
        # Viewers enlarge a canvas that is too small for its first frame; some files have none.
        self.size = max(canvas[0], left + width), max(canvas[1], top + height)

    def load(self, factor: int = 1) -> Image.Image:
        left, top, width, height = self._frame
        code = self._data[self._pixels] if self._pixels < len(self._data) else 0
        if not 1 <= code <= _MAX_CODE or not width or not height:
            raise damaged("GIF", "its first frame has no pixels")
        stream = memoryview(self._data)[self._pixels + 1 :]
        frame = Image.frombytes("P", (width, height), stream, "gif", (code, self._interlaced))
        colors = np.zeros((256, 3), np.uint8)
        if self._table:
            table = np.frombuffer(self._table, np.uint8).reshape(-1, 3)
            colors[: len(table)] = table
        else:  # none is allowed: the colors are the viewer's
            colors[:] = np.arange(256, dtype=np.uint8)[:, None]
        if self._clear is not None:
            colors[self._clear] = 255
        frame.putpalette(colors.tobytes())
        picture = frame.convert("RGB")
        if (left, top, width, height) == (0, 0, *self.size):
            return picture
        canvas = Image.new("RGB", self.size, (255, 255, 255))
        canvas.paste(picture, (left, top))
        return canvas

    def _extension(self, position: int) -> int:
        """Reads an extension from its label on, and returns where it ends."""
        data = self._data
        if data[position : position + 2] == bytes((_GRAPHIC_CONTROL, 4)):
            flags, clear = data[position + 2 : position + 3], data[position + 5 : position + 6]
            self._clear = clear[0] if clear and flags[0] & 1 else None
        position += 1
        self._blocks += 1
        while position < len(data) and data[position] and self._blocks < _MAX_BLOCKS:
            position += 1 + data[position]
            self._blocks += 1
        return position + 1


def _color_table(data: bytes, position: int, flags: int) -> tuple[bytes, int]:
    """Returns a color table, empty if there is none, and where it ends."""
    if not flags & 0x80:
        return b"", position
    end = position + 3 * (2 << (flags & 7))
    if end > len(data):
        raise damaged("GIF", "it ends within its color table")
    return data[position:end], end
