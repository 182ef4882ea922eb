"""Reading of AVIF and HEIC, the image formats in the ISO base media container (ISO/IEC 23008-12).

AVIF is read by Pillow (libavif), HEIC by pillow-heif (libheif) if it is installed. Orientation is a
property of the picture in this container ("irot", "imir"); that of EXIF must not be applied on top
of it, and EXIF is hidden from both libraries. Pillow does not crop an AVIF ("clap"): it is done
here.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from PIL import Image, features

from multigrain.images.errors import damaged, unsupported
from multigrain.images.exif import exif_orientation
from multigrain.images.formats import AVIF_BRANDS, brands
from multigrain.images.heif_boxes import Contents, hide_exif, read_contents
from multigrain.images.picture import Picture, bands, on_white

# Imported once here and not at first use in a thread: an engine imports this module at its start.
# Several pictures are decoded at the same time: more threads for each would only be too many, and
# Pillow counts them without the limits of a container.
try:
    import pillow_heif as _pillow_heif
except ImportError:
    _pillow_heif = None  # type: ignore[assignment]
else:
    _pillow_heif.options.DECODE_THREADS = 1

_AVIF: Final = features.check("avif")
if _AVIF:
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_HEVC: Final = frozenset({b"hvc1", b"hev1", b"lhv1"})
# Types of items that hold pixels in compressions that are not read.
_CODECS: Final = {
    b"jpeg": "JPEG",
    b"j2k1": "JPEG 2000",
    b"avc1": "H.264",
    b"vvc1": "H.266",
    b"evc1": "EVC",
    b"unci": "no",  # ISO/IEC 23001-17
}
_MAX_SIDE: Final = 32768  # of both libraries
_MAX_AVIF_PIXELS: Final = 2**28  # of libavif


def open_heif(data: bytes) -> Picture:
    """Opens a file of either format by the compression of its pictures.

    Its brands say that too, but not reliably.

    Raises:
        MultigrainError: IMAGE_UNREADABLE, IMAGE_FORMAT.
    """
    contents = read_contents(data)
    types = contents.types
    named = brands(data)
    if types is None and b"moov" in data and b"avis" not in named:
        raise unsupported("a HEIF sequence without a still picture", "extract a frame")
    if max(contents.largest) > _MAX_SIDE:
        raise unsupported(f"an image with a side of more than {_MAX_SIDE} pixels", "scale it down")
    if types and types & _HEVC:
        return Heic(data, contents)
    if types and b"av01" in types:
        return Avif(data, contents)
    for name, codec in _CODECS.items():
        if types and name in types:
            raise unsupported(f"a HEIF image with {codec} compression")
    form = Heic if AVIF_BRANDS.isdisjoint(named) else Avif
    return form(data, contents)


class Avif(Picture):
    """An AVIF; of a sequence, its first frame.

    Args:
        data: the file.
        contents: its table of contents.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT without support in Pillow.
    """

    form = "AVIF"

    def __init__(self, data: bytes, contents: Contents) -> None:
        if not _AVIF:
            raise unsupported(
                "an AVIF image", "install Pillow from a wheel of version 11.3 or later"
            )
        if contents.largest[0] * contents.largest[1] > _MAX_AVIF_PIXELS:
            raise unsupported(
                f"an AVIF image of {contents.largest[0]} x {contents.largest[1]} pixels",
                "scale it down",
            )
        try:
            self._image = AvifImagePlugin.AvifImageFile(io.BytesIO(hide_exif(data, contents)))
        except Exception as error:
            raise damaged("AVIF", "its header cannot be read") from error
        self.stored = contents.largest
        self.size = self._image.size
        self._crop = None if self._image.is_animated else contents.crop
        if self._crop is not None:
            self.size = self._crop[2:]
        # The library writes the rotation and mirroring of the container into an EXIF block.
        exif = self._image.info.get("exif", b"")
        self.orientation = exif_orientation(exif.removeprefix(b"Exif\x00\x00")) or 1

    def load(self, factor: int = 1) -> Image.Image:
        size, mode = self._image.size, self._image.mode
        pixels = memoryview(self._image._decoder.get_frame(0)[0])
        self._image._decoder = None  # frees its memory before the pixels are converted
        stride = len(pixels) // max(1, size[1])

        def band(top: int, bottom: int) -> Image.Image:
            rows = pixels[stride * top : stride * bottom]
            return Image.frombytes(mode, (size[0], bottom - top), rows)

        left, top, width, height = self._crop or (0, 0, *size)
        canvas = Image.new("RGB", (width, height), None)
        for _, first, _, last in bands((size[0], height)):
            part = band(top + first, top + last).crop((left, 0, left + width, last - first))
            canvas.paste(_rgb(part), (0, first))
        return canvas


class Heic(Picture):
    """A HEIC; of several pictures, the primary one, upright.

    Args:
        data: the file.
        contents: its table of contents.

    Raises:
        MultigrainError: IMAGE_UNREADABLE; IMAGE_FORMAT without pillow-heif.
    """

    form = "HEIC"

    def __init__(self, data: bytes, contents: Contents) -> None:
        if _pillow_heif is None:
            raise unsupported(
                "a HEIC image",
                "save it as JPEG or PNG, or install multigrain[heif] where the daemon runs",
            )
        try:
            file = _pillow_heif.open_heif(
                hide_exif(data, contents), convert_hdr_to_8bit=False, hdr_to_16bit=False
            )
            self._image: Any = file[file.primary_index]
        except Exception as error:
            if "limit exceeded" in str(error):
                raise unsupported(
                    "a HEIC image of more boxes, pictures or tiles than its library reads"
                ) from error
            raise damaged("HEIC", "its header cannot be read") from error
        self.stored = contents.largest
        self.size = self._image.size

    def load(self, factor: int = 1) -> Image.Image:
        image = self._image
        samples = np.asarray(image)
        largest = (1 << image.info["bit_depth"]) - 1 if samples.dtype != np.uint8 else 255
        mode = "L" if samples.ndim == 2 else image.mode.split(";")[0]
        if (samples.shape[1], samples.shape[0]) != self.size:
            raise damaged("HEIC", "its size differs from that in its header")
        canvas = Image.new("RGB", self.size, None)
        for box in bands(self.size):
            band = samples[box[1] : box[3]]
            if largest != 255:  # samples of 10 or 12 bits
                band = ((band.astype(np.uint32) * 255 + largest // 2) // largest).astype(np.uint8)
            part = Image.frombytes(mode, (band.shape[1], band.shape[0]), band.tobytes())
            # Premultiplied alpha first becomes straight.
            canvas.paste(_rgb(part.convert("RGBA") if mode == "RGBa" else part), box)
        return canvas


def _rgb(image: Image.Image) -> Image.Image:
    return on_white(image) if image.mode in ("RGBA", "LA") else image.convert("RGB")
