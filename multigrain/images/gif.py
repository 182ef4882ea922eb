"""Reading of the first frame of a GIF (GIF89a specification).

Comments and extensions of programs are skipped, and what follows the frame is not looked at.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from PIL import Image

from multigrain.images.errors import damaged
from multigrain.images.gif_blocks import read_header
from multigrain.images.picture import Picture, bands

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
        self._data = data
        self._header = read_header(data)
        self.size = self._header.size

    def load(self, factor: int = 1) -> Image.Image:
        header = self._header
        left, top, width, height = header.frame
        code = self._data[header.pixels] if header.pixels < len(self._data) else 0
        if not 1 <= code <= _MAX_CODE or not width or not height:
            raise damaged("GIF", "its first frame has no pixels")
        stream = memoryview(self._data)[header.pixels + 1 :]
        frame = Image.frombytes("P", (width, height), stream, "gif", (code, header.interlaced))
        colors = np.zeros((256, 3), np.uint8)
        if header.table:
            table = np.frombuffer(header.table, np.uint8).reshape(-1, 3)
            colors[: len(table)] = table
        else:  # none is allowed: the colors are the viewer's
            colors[:] = np.arange(256, dtype=np.uint8)[:, None]
        if header.clear is not None:
            colors[header.clear] = 255
        frame.putpalette(colors.tobytes())
        if (left, top, width, height) == (0, 0, *self.size):
            return frame.convert("RGB")
        canvas = Image.new("RGB", self.size, (255, 255, 255))
        for box in bands(frame.size):
            canvas.paste(frame.crop(box).convert("RGB"), (left, top + box[1]))
        return canvas
