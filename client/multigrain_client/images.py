"""Encodes images of any supported type as the bytes of an image file."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt

from multigrain_client.errors import ImageError, InvalidRequest, MissingPackage

if TYPE_CHECKING:
    from PIL import Image as PilImage
    from typing_extensions import TypeIs

    _InMemory: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[Any] | PilImage.Image
    Image: TypeAlias = str | os.PathLike[str] | BinaryIO | _InMemory
    Images: TypeAlias = Image | Iterable[Image]

NEEDS_PILLOW = "needs Pillow to be encoded: pip install 'multigrain[images]'"
_SUPPORTED = "a path, bytes, an open binary file, a PIL image or a NumPy array"
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of an image file, with a name for messages ("photos/cat.jpg", "image 3")."""

    index: int
    name: str
    data: bytes


def each(images: Images) -> Iterator[Image]:
    """Iterates over a single image, an (N, H, W, C) array or an iterable of images.

    Raises:
        InvalidRequest: for anything else.
    """
    if isinstance(images, np.ndarray):
        yield from [images] if images.ndim < 4 else list(images)
    elif is_single(images):
        yield images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise InvalidRequest(f"a {type(images).__name__} is not an image; give {_SUPPORTED}")


def encode_each(images: Images) -> Iterator[EncodedImage | ImageError]:
    """Encodes lazily: never more than one image is in memory."""
    for index, image in enumerate(each(images)):
        yield encode_item(index, image)


def encode_item(index: int, image: Image) -> EncodedImage | ImageError:
    """One encoded image, or the error of a file that cannot be read.

    Raises:
        InvalidRequest: for an object that is not an image.
        MissingPackage: for an array, without Pillow.
    """
    name = _name(index, image)
    try:
        return EncodedImage(index, name, encode(image, name))
    except OSError as error:
        reason = error.strerror or str(error)
        return ImageError(index, name, "IMAGE_UNREADABLE", f"cannot be read: {reason}")


def encode(image: Image, name: str = "image") -> bytes:
    """Bytes of an image file.

    Paths, bytes and files are sent unchanged; uint8 arrays (height, width[, 1, 3 or 4]) and PIL
    images are encoded as PNG, which is lossless.

    Raises:
        OSError: if a file cannot be read.
        InvalidRequest: for an object that is not an image, or an image that PNG cannot represent.
        MissingPackage: for an array, without Pillow.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _encode_array(image, name)
    if _is_pil(image):
        return _encode_pil(image, name)
    read = getattr(image, "read", None)
    if callable(read):
        data = read()
        if not isinstance(data, bytes):
            raise InvalidRequest(f"{name}: the file is open in text mode; open it with mode 'rb'")
        return data
    raise InvalidRequest(f"{name}: a {type(image).__name__} is not an image; give {_SUPPORTED}")


def _encode_array(array: npt.NDArray[Any], name: str) -> bytes:
    if array.dtype != np.uint8:
        raise InvalidRequest(f"{name}: an array must be uint8 (0..255), not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise InvalidRequest(
            f"{name}: an array must be (height, width), or (height, width, channels) with 1, 3 "
            f"or 4 channels, not {array.shape}"
        )
    try:
        from PIL import Image as PilImage
    except ImportError as error:
        raise MissingPackage(f"{name}: an array {NEEDS_PILLOW}") from error
    return _encode_pil(PilImage.fromarray(np.ascontiguousarray(array)), name)


def _encode_pil(image: PilImage.Image, name: str) -> bytes:
    try:
        image = _for_png(_upright(image))
    except ValueError as error:
        raise InvalidRequest(f"{name}: an image of mode {image.mode}: {error}") from error
    buffer = io.BytesIO()
    # Fast compression: encoding time matters more than a few bytes on the network.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _upright(image: PilImage.Image) -> PilImage.Image:
    """Rotated by its EXIF orientation, as the server does; the PNG does not carry the tag."""
    from PIL import ImageOps  # a PIL image exists, so Pillow is installed

    try:
        turned = image.getexif().get(_ORIENTATION_TAG, 1) in range(2, 9)
    except Exception:  # damaged metadata does not matter for the pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _for_png(image: PilImage.Image) -> PilImage.Image:
    """The same image in a mode that PNG supports (unlike CMYK or YCbCr).

    Transparency and 16 bits are kept: the server handles them, while Pillow's own conversion of
    gray with more than 8 bits clips at 255.

    Raises:
        ValueError: if there is no such mode.
    """
    if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        return image
    if image.mode == "La":
        return image.convert("LA")
    if image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_16(image)
    return image.convert("RGB")


def _gray_16(image: PilImage.Image) -> PilImage.Image:
    from PIL import Image as PilImage

    values = np.asarray(image)
    if image.mode == "F":
        raise ValueError("floating-point values have no defined range; convert it to L")
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError("values must be 0..65535")
    return PilImage.fromarray(values.astype(np.uint16))


def is_single(images: Images) -> TypeIs[Image]:
    """Whether this is a single image."""
    return (
        isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview))
        or _is_pil(images)
        or callable(getattr(images, "read", None))
    )


def _is_pil(image: Any) -> TypeGuard[PilImage.Image]:
    """Whether this is a PIL image; does not import Pillow."""
    return any(cls.__module__.startswith("PIL.") for cls in type(image).__mro__)


def _name(index: int, image: Any) -> str:
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    # Open files, and PIL images opened from a file, know their path.
    for attribute in ("filename", "name"):
        value = getattr(image, attribute, None)
        if isinstance(value, str) and value:
            return value
    return f"image {index}"
