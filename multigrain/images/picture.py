"""What the readers of all formats share: an opened file, and compositing on white."""

from __future__ import annotations

from abc import ABC, abstractmethod

from PIL import Image


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


def on_white(image: Image.Image) -> Image.Image:
    """Composites an image with an alpha channel on white, and returns it as RGB."""
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white
