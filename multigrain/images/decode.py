"""Decoding of untrusted image files to RGB, within limits.

Training, evaluation and serving all use this decoder, so that they see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multigrain.errors import ErrorKind, MultigrainError
from multigrain.images.bmp import Bmp
from multigrain.images.cost import decode_cost, reduction
from multigrain.images.errors import damaged
from multigrain.images.formats import FORMAT_NAMES, identify
from multigrain.images.gif import Gif
from multigrain.images.heif import open_heif
from multigrain.images.jpeg import Jpeg
from multigrain.images.limits import DEFAULT_LIMITS, ImageLimits
from multigrain.images.picture import Picture
from multigrain.images.png import Png
from multigrain.images.tiff import Tiff
from multigrain.images.webp import WebP

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
            ``shortest``; 0 = always the full size. Lossless JPEGs and other formats do not
            support this.
    """
    picture = _open(data, limits)
    _check_cost(data, shortest, limits)
    factor = reduction(picture.size, shortest) if picture.reducible else 1
    try:
        # libjpeg skips the high frequencies of each 8 x 8 block: a good average in a fraction of
        # the time.
        image = picture.load(factor)
    except MultigrainError:
        raise
    except MemoryError as error:
        raise _too_large("its pixels do not fit in memory", limits) from error
    except Exception as error:  # decoders of damaged data raise all kinds of exceptions
        raise damaged(picture.form, "its pixels cannot be decoded") from error
    method = _UPRIGHT.get(picture.orientation)
    return image if method is None else image.transpose(method)


def image_size(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Returns (width, height) of :func:`decode`'s result, from the header alone.

    Raises:
        MultigrainError: as :func:`decode`, as far as the header shows.
    """
    picture = _open(data, limits)
    width, height = picture.size
    return (height, width) if picture.orientation in _TRANSPOSED else (width, height)


def _open(data: bytes, limits: ImageLimits) -> Picture:
    """Reads and checks the header; does not decode."""
    if not data:
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE, "the image is empty (0 bytes): send or copy the file again"
        )
    if len(data) > limits.max_bytes:
        raise MultigrainError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"the image has {len(data)} bytes, more than the limit of {limits.max_bytes}: "
            "send it smaller or more compressed, or raise serving.max_image_bytes of the daemon",
        )
    if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
        # Pillow's own limit, which is global, must not be the lower one.
        Image.MAX_IMAGE_PIXELS = limits.max_pixels
    kind = identify(data)
    if kind is None:
        raise MultigrainError(
            ErrorKind.IMAGE_FORMAT,
            f"these {len(data)} bytes are not an image in a known format: send {FORMAT_NAMES}",
        )
    if not kind.read:
        raise MultigrainError(
            ErrorKind.IMAGE_UNREADABLE if kind.damaged else ErrorKind.IMAGE_FORMAT,
            f"this is {kind.name} and not an image in a format that is read ({FORMAT_NAMES}): "
            f"{kind.todo}",
        )
    try:
        picture = _READERS[kind.name](data)
    except MultigrainError:
        raise
    except Exception as error:  # parsers of damaged headers raise all kinds of exceptions
        raise damaged(kind.name, "its header cannot be read") from error
    for width, height in (picture.stored, picture.size):
        if width * height > limits.max_pixels:
            raise _too_large(f"{width} x {height} pixels", limits)
    if width < 1 or height < 1:
        sides = [name for name, n in (("columns", width), ("rows", height)) if n < 1]
        raise MultigrainError(
            ErrorKind.IMAGE_FORMAT,
            f"the image has 0 {' and 0 '.join(sides)} ({width} x {height} pixels): send one with "
            "at least 1 x 1",
        )
    return picture


def _check_cost(data: bytes, shortest: int, limits: ImageLimits) -> None:
    """Refuses a picture that takes too much memory or time to decode."""
    cost = decode_cost(data, shortest)
    todo = (
        "save it as a baseline (not progressive) JPEG, or with 8 bits and without interlacing, "
        "or scale it down"
    )
    if cost.bytes > limits.max_decode_bytes:
        raise MultigrainError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"decoding the image would take {_mib(cost.bytes)} of memory, more than the limit of "
            f"{_mib(limits.max_decode_bytes)}: {todo}; or raise serving.max_decode_bytes of the "
            "daemon",
        )
    if cost.seconds > limits.max_decode_seconds:
        raise MultigrainError(
            ErrorKind.IMAGE_TOO_LARGE,
            f"decoding the image would take {cost.seconds:.3g} seconds of processor time, more "
            f"than the limit of {limits.max_decode_seconds:.3g}: {todo}; or raise "
            "serving.max_decode_seconds of the daemon",
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _too_large(what: str, limits: ImageLimits) -> MultigrainError:
    return MultigrainError(
        ErrorKind.IMAGE_TOO_LARGE,
        f"the image is too large: {what}, more than the limit of {limits.max_pixels} pixels: "
        "scale it down, or raise serving.max_image_pixels of the daemon",
    )


_READERS: Final[dict[str, Callable[[bytes], Picture]]] = {
    "JPEG": Jpeg,
    "PNG": Png,
    "WEBP": WebP,
    "BMP": Bmp,
    "GIF": Gif,
    "TIFF": Tiff,
    "AVIF": open_heif,
    "HEIC": open_heif,
}
