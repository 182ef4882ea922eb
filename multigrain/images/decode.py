"""Decoding of untrusted image files to RGB, within limits.

Training, evaluation and serving all use this decoder, so that they see the same pixels.
"""

from __future__ import annotations

import io
import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Importing a plugin registers it: once here, not at first use in a thread.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images import tiff
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits

# JPEG includes MPO, which many phones write as .jpg: its first image is read.
FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
FORMAT_NAMES: Final = "JPEG, PNG, WebP, BMP, GIF or TIFF"

_SIGNATURES: Final = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"RIFF",
    b"BM",
    b"GIF8",
    b"II*\x00",
    b"MM\x00*",
)
_ORIENTATION_TAG: Final = 0x0112
# EXIF orientation -> the operation that makes the image upright.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED: Final = frozenset({5, 6, 7, 8})


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decodes an image to RGB.

    Of an animation, the first frame. EXIF orientation is applied; transparency is composited on
    white; gray, palette, CMYK and 16-bit images are converted (16 bits are scaled to 8, not
    clipped). Color profiles are ignored, as is usual for training data.

    Args:
        data: the encoded file.
        limits: limits of the file.

    Returns:
        uint8 (H, W, 3).

    Raises:
        MultigrainError: IMAGE_UNREADABLE (empty, truncated, damaged), IMAGE_FORMAT (not an
            image, or an unsupported kind), IMAGE_TOO_LARGE.
    """
    return np.asarray(decode_image(data, limits))


def decode_image(
    data: bytes, limits: ImageLimits = DEFAULT_LIMITS, *, shortest: int = 0
) -> Image.Image:
    """Like :func:`decode`, but returns a loaded Pillow image of mode RGB.

    Args:
        data: the encoded file.
        limits: limits of the file.
        shortest: least length in pixels of the shorter side. A JPEG is decoded at a half, a
            quarter or an eighth of its size if that is a whole number of pixels and at least
            ``shortest``; 0 = always the full size. Other formats do not support this.
    """
    _check_bytes(data, limits)
    if tiff.is_tiff(data):
        picture = _open_tiff(data, limits)
        return _upright(picture.load(), picture.orientation)
    image = _open(data, limits)
    try:
        factor = _reduction(image.size, shortest)
        if factor > 1:
            # libjpeg skips the high frequencies of each 8 x 8 block: a good average in a fraction
            # of the time. For other formats ``draft`` does nothing.
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        orientation = _orientation(image)
        return _upright(_to_rgb(image), orientation)
    except MultigrainError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise _too_large(_pixels(error), limits) from error
    except Exception as error:  # decoders of damaged data raise all kinds of exceptions
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE,
            f"the {image.format} image is truncated or damaged ({_reason(error)}): "
            "send the whole file, or save it again",
        ) from error


def image_size(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Returns (width, height) of :func:`decode`'s result, from the header alone.

    Raises:
        MultigrainError: as :func:`decode`, as far as the header shows.
    """
    _check_bytes(data, limits)
    if tiff.is_tiff(data):
        picture = _open_tiff(data, limits)
        (width, height), orientation = picture.size, picture.orientation
    else:
        image = _open(data, limits)
        (width, height), orientation = image.size, _orientation(image)
    return (height, width) if orientation in _TRANSPOSED else (width, height)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _check_bytes(data: bytes, limits: ImageLimits) -> None:
    if not data:
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE, "the image is empty (0 bytes): send or copy the file again"
        )
    if len(data) > limits.max_bytes:
        raise MultigrainError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"the image has {len(data)} bytes, more than the limit of {limits.max_bytes}: "
            "send it smaller or more compressed",
        )


def _open_tiff(data: bytes, limits: ImageLimits) -> tiff.Tiff:
    picture = tiff.Tiff(data)
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise _too_large(f"{width} x {height} pixels", limits)
    return picture


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Reads and checks the header; does not decode."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data.startswith(_SIGNATURES):
            raise MultigrainError(
                ErrorKind.IMAGE_UNREADABLE,
                "the image's header is truncated or damaged: send the whole file, or save it again",
            ) from error
        raise MultigrainError(
            ErrorKind.IMAGE_FORMAT,
            f"these {len(data)} bytes are not an image in a known format: send {FORMAT_NAMES}",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(_pixels(error), limits) from error
    except Exception as error:  # parsers of damaged headers raise all kinds of exceptions
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE,
            f"the image's header is damaged ({_reason(error)}): save the file again",
        ) from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise _too_large(f"{width} x {height} pixels", limits)
    if width < 1 or height < 1:
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE,
            f"the image is {width} x {height} pixels: send one with at least 1 x 1",
        )
    return image


def _too_large(what: str, limits: ImageLimits) -> MultigrainError:
    return MultigrainError(
        ErrorKind.IMAGE_TOO_LARGE,
        f"the image is too large: {what}, more than the limit of {limits.max_pixels} pixels: "
        "scale it down",
    )


def _reduction(size: tuple[int, int], shortest: int) -> int:
    """Returns the factor by which to reduce a JPEG; only exact divisors, to avoid a shift."""
    for factor in (8, 4, 2):
        if shortest and min(size) >= factor * shortest and not any(n % factor for n in size):
            return factor
    return 1


def _pixels(error: Exception) -> str:
    """Returns the pixels in Pillow's message: its bomb check precedes access to the size."""
    found = re.search(r"\((\d+) pixels\)", str(error))
    return f"{found[1]} pixels" if found else "its pixels do not fit in memory"


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Without Pillow's name of the in-memory file ("<_io.BytesIO object at 0x...>").
    return text.split(" <_io.", 1)[0][:200]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # the pixels may be intact although the metadata is damaged
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise _unsupported_mode(image) from error


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Converts 16-bit gray to 8 bits: v * 255 / 65535, rounded. Pillow's own conversion clips.

    A PNG's transparent value becomes white.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise _unsupported_mode(image)
    scaled = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        scaled[values == clear] = 255
    return Image.fromarray(scaled).convert("RGB")


def _unsupported_mode(image: Image.Image) -> MultigrainError:
    return MultigrainError(
        ErrorKind.IMAGE_FORMAT,
        f"the {image.format} image has unsupported pixels of mode {image.mode!r}: save it as RGB "
        "or gray with 8 or 16 bits per channel",
    )
