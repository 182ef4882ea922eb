"""What the readers of all formats share: an opened file, and compositing on white."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BAND_PIXELS: Final = 2**17


class Picture(ABC):
    """An encoded image whose header was read and checked, but whose pixels were not decoded.

    Attributes:
        form: name of the format for messages, such as "JPEG".
        size: (width, height) in pixels, as stored.
        stored: (width, height) that a decoder needs memory for, if the file may show only a part.
        orientation: EXIF orientation 1..8 that must still be applied to ``load``'s result.
        reducible: whether ``load`` can decode at a fraction of the size.
    """

    form: str
    size: tuple[int, int]
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    reducible: bool = False

    @abstractmethod
    def load(self, factor: int = 1) -> Image.Image:
        """Decodes the pixels.

        Args:
            factor: 1, or 2, 4 or 8 if ``reducible``: a divisor of both sides.

        Returns:
            A loaded image of mode RGB, as stored, with transparency composited on white.

        Raises:
            MultigrainError: IMAGE_UNREADABLE, IMAGE_FORMAT.
            ValueError: the pixels are truncated or damaged.
        """


def bands(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields boxes of whole rows, from the top down, that are small enough to convert at a time."""
    width, height = size
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def on_white(image: Image.Image) -> Image.Image:
    """Composites an image with an alpha channel on white, and returns it as RGB."""
    canvas = Image.new("RGB", image.size, None)
    for box in bands(image.size):
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGB", part.size, (255, 255, 255))
        white.paste(part, mask=part.getchannel("A"))
        canvas.paste(white, box)
    return canvas


def from_rows(size: tuple[int, int], rows: Callable[[int, int], NDArray[np.uint8]]) -> Image.Image:
    """Returns an RGB image that is made in bands.

    Args:
        size: (width, height) in pixels.
        rows: returns the rows from the first number to before the second: uint8 (rows, W, 3).
    """
    canvas = Image.new("RGB", size, None)
    for box in bands(size):
        canvas.paste(Image.fromarray(rows(box[1], box[3])), box)
    return canvas
