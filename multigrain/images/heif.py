"""Reading of AVIF and HEIC, the image formats in the ISO base media container (ISO/IEC 23008-12).

AVIF is read by Pillow (libavif), HEIC by pillow-heif (libheif) if it is installed. Orientation is a
property of the picture in this container ("irot", "imir"); that of EXIF must not be applied on top
of it, and EXIF is hidden from both libraries.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from PIL import Image, features

from multigrain.images.picture import Picture, damaged, exif_orientation, on_white, unsupported

# Imported once here and not at first use in a thread: an engine imports this module at its start.
try:
    import pillow_heif as _pillow_heif
except ImportError:
    _pillow_heif = None  # type: ignore[assignment]

_AVIF: Final = features.check("avif")
if _AVIF:
    from PIL import AvifImagePlugin

_BAND_PIXELS: Final = 2**20  # deep samples are scaled in bands of rows, to save memory


class Avif(Picture):
    """An AVIF; of a sequence, its first frame.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT without support in Pillow.
    """

    form = "AVIF"

    def __init__(self, data: bytes) -> None:
        if not _AVIF:
            raise unsupported(
                "an AVIF image", "install Pillow from a wheel of version 11.3 or later"
            )
        try:
            self._image = AvifImagePlugin.AvifImageFile(io.BytesIO(_without_exif(data)))
        except Exception as error:
            raise damaged("AVIF", "its header cannot be read") from error
        self.size = self._image.size
        # The library writes the rotation and mirroring of the container into an EXIF block.
        exif = self._image.info.get("exif", b"")
        self.orientation = exif_orientation(exif.removeprefix(b"Exif\x00\x00")) or 1

    def load(self, factor: int = 1) -> Image.Image:
        self._image.load()
        if self._image.mode == "RGBA":
            return on_white(self._image)
        return self._image.convert("RGB")


class Heic(Picture):
    """A HEIC; of several pictures, the primary one, upright.

    Args:
        data: the file.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT without pillow-heif.
    """

    form = "HEIC"

    def __init__(self, data: bytes) -> None:
        if _pillow_heif is None:
            raise unsupported(
                "a HEIC image",
                "save it as JPEG or PNG, or install multigrain[heif] where the daemon runs",
            )
        try:
            file = _pillow_heif.open_heif(
                _without_exif(data), convert_hdr_to_8bit=False, hdr_to_16bit=False
            )
            self._image: Any = file[file.primary_index]
        except Exception as error:
            raise damaged("HEIC", "its header cannot be read") from error
        self.size = self._image.size

    def load(self, factor: int = 1) -> Image.Image:
        image = self._image
        samples = np.asarray(image)
        if samples.dtype == np.uint8:
            pixels = samples
        else:
            # Samples of 10 or 12 bits.
            largest = (1 << image.info["bit_depth"]) - 1
            pixels = np.empty(samples.shape, np.uint8)
            rows = max(1, _BAND_PIXELS // samples.shape[1])
            for start in range(0, samples.shape[0], rows):
                band = samples[start : start + rows].astype(np.uint32)
                pixels[start : start + rows] = (band * 255 + largest // 2) // largest
        mode = image.mode.split(";")[0]
        picture = Image.frombytes(mode, (samples.shape[1], samples.shape[0]), pixels.tobytes())
        if picture.size != self.size:
            raise damaged("HEIC", "its size differs from that in its header")
        if mode == "RGBa":  # premultiplied
            picture = picture.convert("RGBA")
        return on_white(picture) if mode in ("RGBA", "RGBa", "LA") else picture.convert("RGB")


def _without_exif(data: bytes) -> bytes:
    """Renames the EXIF item in the table of contents: its contents may be damaged, or any size."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if data[position + 4 : position + 8] == b"meta":
            end = position + size if size > 1 else len(data)
            head = data[:position], data[position:end].replace(b"Exif\x00", b"skip\x00")
            return b"".join((*head, data[end:]))
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size < 8:
            break
        position += size
    return data
