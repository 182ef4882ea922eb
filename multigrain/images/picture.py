"""What the readers of all formats share: an opened file, its errors, orientation, transparency."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError

_ORIENTATION_TAG: Final = 0x0112
# Sizes in bytes of EXIF's BYTE, SHORT and LONG.
_EXIF_WIDTHS: Final = {1: 1, 3: 2, 4: 4}


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


def damaged(form: str, reason: str) -> MultigrainError:
    """Returns an IMAGE_UNREADABLE error of a truncated or damaged file."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE,
        f"the {form} image is truncated or damaged ({reason}): send the whole file, or save it "
        "again",
    )


def contradictory(form: str, reason: str) -> MultigrainError:
    """Returns an IMAGE_UNREADABLE error of a file whose header cannot be right, even if whole."""
    return MultigrainError(
        ErrorKind.IMAGE_UNREADABLE, f"the {form} image is damaged ({reason}): save it again"
    )


def unsupported(what: str, todo: str = "save it as JPEG or PNG") -> MultigrainError:
    """Returns an IMAGE_FORMAT error of a whole file of a kind that is not read.

    Args:
        what: completes "this is ...", for example "a 12-bit JPEG".
        todo: what to do instead.
    """
    return MultigrainError(ErrorKind.IMAGE_FORMAT, f"this is {what}, which is not read: {todo}")


def on_white(image: Image.Image) -> Image.Image:
    """Composites an image with an alpha channel on white, and returns it as RGB."""
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation of an EXIF block, or 0 if it has none or is damaged.

    Args:
        exif: from the byte order mark ("II" or "MM") on.
    """
    if exif[:2] not in (b"II", b"MM"):
        return 0

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], "little" if exif[:1] == b"I" else "big")

    start = number(4, 4)
    for entry in range(min(number(start, 2), 1000)):
        at = start + 2 + 12 * entry
        if at + 12 > len(exif):
            break
        if number(at, 2) == _ORIENTATION_TAG:
            value = number(at + 8, _EXIF_WIDTHS.get(number(at + 2, 2), 2))
            return value if 1 <= value <= 8 else 0
    return 0
